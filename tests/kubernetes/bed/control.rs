//! The control plane: etcd, the API server, controllers, the scheduler and `CoreDNS`, in a namespace of the LAN.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use super::parts::part;
use super::pki::{ADMIN, KEY_USER, Pki, SERVER, UNINSTALL_USER, VIPROUTED_USER};
use crate::harness::{Daemon, Lan, Netns, PATIENCE, Run, TempDir, until};

/// Its address on the LAN.
pub const ADDRESS: &str = "192.0.2.10";

/// Services' own addresses.
pub const SERVICES: &str = "10.96.0.0/16";

/// Ended in this order: those who call before who is called.
pub struct ControlPlane {
    callers: Vec<Daemon>,
    api: Option<Daemon>,
    etcd: Option<Daemon>,
    pub ns: Netns,
    pki: Arc<Pki>,
    dir: TempDir,
}

impl ControlPlane {
    /// Starts all of it and waits until the API server is ready. To be called by the test's own thread, with which they end.
    pub fn start(lan: &Lan, pki: Arc<Pki>, busy: bool) -> Self {
        let (ns, dir) = (lan.client(10, &[]), TempDir::new());
        pki.issue("api", "/CN=kube-apiserver", &format!("DNS:kubernetes.default.svc,IP:{ADDRESS},IP:10.96.0.1"));
        fs::write(dir.file("admin"), pki.kubeconfig("admin", ADMIN)).expect("write a kubeconfig");
        // Of viproute alone, once it has an answer.
        let users = [VIPROUTED_USER, KEY_USER, UNINSTALL_USER];
        let rule = json!({ "level": "Metadata", "users": users, "omitStages": ["RequestReceived"] });
        let policy = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [rule, { "level": "None" }] });
        fs::write(dir.file("audit.json"), policy.to_string()).expect("write the audit policy");
        let mut control = Self { callers: Vec::new(), api: None, etcd: None, ns, pki, dir };
        control.start_etcd();
        control.start_api();
        control.wait();
        control.start_callers(busy);
        control
    }

    fn daemon(&self, name: &str, arguments: &[&str]) -> Daemon {
        Daemon::start(name, self.ns.cmd(part(name)).args(arguments), &self.dir)
    }

    pub fn start_etcd(&mut self) {
        let data = format!("--data-dir={}", self.dir.file("etcd"));
        self.etcd = Some(self.daemon("etcd", &[&data, "--unsafe-no-fsync"]));
    }

    /// etcd keeps nothing of how what it has came to be.
    pub fn compact_etcd(&self) {
        let ask = |path: &str, body: &str| {
            let url = format!("http://127.0.0.1:2379/v3/{path}");
            self.ns.cmd("curl").args(["--silent", "--show-error", "--fail", &url, "--data", body]).finish("").ok()
        };
        let status: Value = serde_json::from_str(&ask("maintenance/status", "{}")).expect("etcd's JSON");
        let revision = &status["header"]["revision"];
        ask("kv/compaction", &json!({ "revision": revision, "physical": true }).to_string());
    }

    pub fn start_api(&mut self) {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.pki.file(name));
        let arguments = [
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--advertise-address={ADDRESS}"),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--authorization-mode=Node,RBAC".into(),
            "--allow-privileged=true".into(),
            file("client-ca-file", "ca.crt"),
            file("tls-cert-file", "api.crt"),
            file("tls-private-key-file", "api.key"),
            file("service-account-key-file", "tokens.key"),
            file("service-account-signing-key-file", "tokens.key"),
            format!("--service-account-issuer={SERVER}"),
            file("kubelet-client-certificate", "admin.crt"),
            file("kubelet-client-key", "admin.key"),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--audit-policy-file={}", self.dir.file("audit.json")),
            format!("--audit-log-path={}", self.dir.file("audit")),
        ];
        let api = self.daemon("kube-apiserver", &arguments.each_ref().map(String::as_str));
        self.api = Some(api);
    }

    /// Until the API server answers that it is ready.
    pub fn wait(&self) {
        until("the API server is ready", PATIENCE, || {
            let ready = self.kubectl(&["get", "--raw", "/readyz"]).finish("").status.success();
            if !ready {
                sleep(Duration::from_millis(200));
            }
            ready.then_some(())
        });
    }

    /// What viprouted, and the chart's Jobs, have asked of the API: the audit log's entries.
    pub fn asked(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.dir.file("audit")).expect("the audit log");
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// SIGKILL, as a machine that loses power.
    pub fn kill_api(&mut self) {
        drop(self.api.take().expect("the API server runs"));
    }

    /// `busy`: without that controllers ask 20 times a second, which holds back the slices of many new Services.
    fn start_callers(&mut self, busy: bool) {
        let admin = format!("--kubeconfig={}", self.dir.file("admin"));
        let controllers = [
            admin.as_str(),
            "--use-service-account-credentials",
            &format!("--service-account-private-key-file={}", self.pki.file("tokens.key")),
            &format!("--root-ca-file={}", self.pki.file("ca.crt")),
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--node-monitor-grace-period=20s",
        ];
        let much = ["--kube-api-qps=500", "--kube-api-burst=1000"];
        let controllers: Vec<&str> = controllers.into_iter().chain(much.into_iter().filter(|_| busy)).collect();
        let corefile = self.dir.file("Corefile");
        let zone = format!("kubernetes cluster.local {{\n kubeconfig {} test\n }}", self.dir.file("admin"));
        fs::write(&corefile, format!(".:53 {{\n errors\n {zone}\n}}\n")).expect("write the Corefile");
        self.callers = vec![
            self.daemon("kube-controller-manager", &controllers),
            self.daemon("kube-scheduler", &[&admin, "--leader-elect=false", "--bind-address=127.0.0.1"]),
            self.daemon("coredns", &["-conf", &corefile]),
        ];
    }

    /// kubectl, by who may do everything.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.ns.cmd(part("kubectl"));
        command.args(["--kubeconfig", &self.dir.file("admin")]).args(arguments);
        // Where it would keep what it has learned of the API.
        command.env("HOME", self.dir.path());
        command
    }

    /// Credentials of a service account: of a certificate of its name.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> String {
        let subject = format!("/O=system:serviceaccounts/CN=system:serviceaccount:{namespace}:{account}");
        self.pki.kubeconfig(&format!("{namespace}-{account}"), &subject)
    }

    /// The credentials of who may do everything.
    pub fn admin(&self) -> String {
        fs::read_to_string(self.dir.file("admin")).expect("a kubeconfig")
    }

    /// helm, which tests/helm.sh has built, by the same, for viproute's release in the namespace of the cluster's own.
    pub fn helm(&self, arguments: &[&str]) -> String {
        let helm = concat!(env!("CARGO_MANIFEST_DIR"), "/target/helm/helm");
        assert!(Path::new(helm).is_file(), "{helm} is missing: run tests/helm.sh");
        let mut command = self.ns.cmd(helm);
        command.args(arguments).args(["--namespace", "kube-system", "--kubeconfig", &self.dir.file("admin")]);
        command.env("HOME", self.dir.path()).finish("").ok()
    }

    /// The same, which must succeed: what it prints.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.kubectl(arguments).finish("").ok()
    }

    pub fn apply(&self, object: &Value) {
        self.kubectl(&["apply", "-f", "-"]).finish(&object.to_string()).ok();
    }

    /// An object, or a list of objects.
    pub fn get(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[&["get", "--output=json"], arguments].concat())).expect("kubectl's JSON")
    }

    /// The same, if there is one.
    pub fn find(&self, arguments: &[&str]) -> Option<Value> {
        let found = self.run(&[&["get", "--output=json", "--ignore-not-found"], arguments].concat());
        (!found.is_empty()).then(|| serde_json::from_str(&found).expect("kubectl's JSON"))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "coredns"] {
            let log = fs::read_to_string(self.dir.file(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- the end of {name}.log\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        if self.api.is_some() {
            for what in ["nodes", "pods,services,endpointslices", "events"] {
                let shown = self.kubectl(&["get", "-A", "-o", "wide", "--request-timeout=10s", what]).try_finish("");
                eprintln!(
                    "--- kubectl get {what}\n{}",
                    shown.map_or_else(|error| error.to_string(), |shown| shown.stdout)
                );
            }
        }
    }
}
