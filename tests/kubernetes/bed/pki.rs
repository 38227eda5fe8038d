//! Who is who in a cluster: a certificate authority, and what it signs.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::harness::{Run, TempDir, tool};

/// The API server's address, as everybody knows it.
pub const SERVER: &str = "https://192.0.2.10:6443";

/// The service account that viprouted has.
pub const VIPROUTED_USER: &str = "system:serviceaccount:kube-system:viproute";

/// The chart's Jobs: the one that makes the nodes' key, and the one that ends the agents.
pub const KEY_USER: &str = "system:serviceaccount:kube-system:viproute-key";
pub const UNINSTALL_USER: &str = "system:serviceaccount:kube-system:viproute-uninstall";

/// That of viprouted on a certificate: one of this name has the rights of the account.
pub const VIPROUTED: &str = "/O=system:serviceaccounts/CN=system:serviceaccount:kube-system:viproute";

/// Of whoever may do everything.
pub const ADMIN: &str = "/O=system:masters/CN=admin";

pub struct Pki {
    dir: TempDir,
    serial: AtomicU32,
}

impl Pki {
    /// The authority and the key that signs service accounts' tokens.
    pub fn new() -> Self {
        let pki = Self { dir: TempDir::new(), serial: AtomicU32::new(1) };
        let (key, certificate, tokens) = (pki.file("ca.key"), pki.file("ca.crt"), pki.file("tokens.key"));
        pki.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=authority",
            &["-keyout", &key, "-out", &certificate],
        );
        pki.openssl("genrsa", &["-out", &tokens, "2048"]);
        pki
    }

    pub fn file(&self, name: &str) -> String {
        self.dir.file(name)
    }

    /// `NAME.key` and `NAME.crt`, for a client and, with `alternatives`, for a server that is called by these.
    pub fn issue(&self, name: &str, subject: &str, alternatives: &str) {
        let [key, request, extensions, certificate] =
            ["key", "csr", "ext", "crt"].map(|kind| self.file(&format!("{name}.{kind}")));
        let names = if alternatives.is_empty() { String::new() } else { format!("subjectAltName={alternatives}\n") };
        fs::write(&extensions, format!("extendedKeyUsage=serverAuth,clientAuth\n{names}")).expect("write extensions");
        self.openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes",
            &["-subj", subject, "-keyout", &key, "-out", &request],
        );
        self.openssl(
            &format!("x509 -req -days 30 -set_serial {}", self.serial.fetch_add(1, Ordering::Relaxed)),
            &[
                "-in",
                &request,
                "-CA",
                &self.file("ca.crt"),
                "-CAkey",
                &self.file("ca.key"),
                "-extfile",
                &extensions,
                "-out",
                &certificate,
            ],
        );
    }

    /// The text of a kubeconfig that needs no other file, since a machine has a `/tmp` of its own.
    pub fn kubeconfig(&self, name: &str, subject: &str) -> String {
        self.issue(name, subject, "");
        let data = |file: &str| self.openssl("base64 -A", &["-in", &self.file(file)]);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": { "server": SERVER, "certificate-authority-data": data("ca.crt") } }],
            "users": [{ "name": "test", "user": {
                "client-certificate-data": data(&format!("{name}.crt")),
                "client-key-data": data(&format!("{name}.key")),
            } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        })
        .to_string()
    }

    #[allow(clippy::unused_self)] // what it writes is the authority's
    fn openssl(&self, command: &str, files: &[&str]) -> String {
        Command::new(tool("openssl")).args(command.split(' ')).args(files).finish("").ok()
    }
}
