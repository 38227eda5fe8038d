//! The container runtimes of a machine that call CNI plugins, and where each of them looks for these.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// A runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// As people know it.
    pub name: &'static str,
    /// It takes the first of these that has the plugin.
    pub plugin_dirs: Vec<PathBuf>,
}

/// How one is known and read.
struct Kind {
    name: &'static str,
    /// Files of its own; any will do.
    signs: &'static [&'static str],
    /// Its configuration. Of a directory all files count, in order.
    configuration: &'static [&'static str],
    /// The keys that name plugin directories, each a path or a list, wherever they are in the configuration.
    keys: &'static [&'static str],
    /// Where it looks unless its configuration says otherwise.
    default: &'static [&'static str],
}

const KINDS: [Kind; 8] = [
    Kind {
        name: "containerd",
        signs: &["/usr/bin/containerd", "/usr/local/bin/containerd", "/etc/containerd/config.toml"],
        configuration: &["/etc/containerd/config.toml", "/etc/containerd/conf.d"],
        keys: &["bin_dir", "bin_dirs"],
        default: &["/opt/cni/bin"],
    },
    Kind {
        name: "k3s",
        signs: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
        configuration: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
        keys: &["bin_dir", "bin_dirs"],
        default: &["/opt/cni/bin"],
    },
    // Where another CNI than flannel gives networks, as always in RKE2, its configuration says nothing of directories.
    Kind {
        name: "RKE2",
        signs: &["/var/lib/rancher/rke2/agent/etc/containerd/config.toml"],
        configuration: &["/var/lib/rancher/rke2/agent/etc/containerd/config.toml"],
        keys: &["bin_dir", "bin_dirs"],
        default: &["/opt/cni/bin"],
    },
    Kind {
        name: "MicroK8s",
        signs: &["/var/snap/microk8s/current/args/containerd.toml"],
        configuration: &["/var/snap/microk8s/current/args/containerd.toml"],
        keys: &["bin_dir", "bin_dirs"],
        default: &["/var/snap/microk8s/current/opt/cni/bin"],
    },
    Kind {
        name: "CRI-O",
        signs: &["/usr/bin/crio", "/usr/local/bin/crio", "/etc/crio"],
        configuration: &["/etc/crio/crio.conf", "/etc/crio/crio.conf.d"],
        keys: &["plugin_dirs", "plugin_dir"],
        default: &["/opt/cni/bin"],
    },
    Kind {
        name: "cri-dockerd",
        signs: &["/usr/bin/cri-dockerd", "/usr/local/bin/cri-dockerd"],
        configuration: &[],
        keys: &[],
        default: &["/opt/cni/bin"],
    },
    Kind {
        name: "Nomad",
        signs: &["/usr/bin/nomad", "/usr/local/bin/nomad"],
        configuration: &[],
        keys: &[],
        default: &["/opt/cni/bin"],
    },
    Kind {
        name: "podman",
        signs: &["/usr/bin/podman", "/usr/local/bin/podman"],
        configuration: &[
            "/usr/share/containers/containers.conf",
            "/etc/containers/containers.conf",
            "/etc/containers/containers.conf.d",
        ],
        keys: &["cni_plugin_dirs"],
        default: &["/usr/local/libexec/cni", "/usr/libexec/cni", "/usr/local/lib/cni", "/usr/lib/cni", "/opt/cni/bin"],
    },
];

/// Those of the machine whose files are below `root`.
pub fn find(root: &Path) -> Vec<Runtime> {
    let here = KINDS.iter().filter(|kind| kind.signs.iter().any(|sign| below(root, sign).exists()));
    here.map(|kind| Runtime { name: kind.name, plugin_dirs: configured(root, kind) }).collect()
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn configured(root: &Path, kind: &Kind) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for file in kind.configuration.iter().flat_map(|path| files(&below(root, path))) {
        // What a runtime can't read it refuses itself.
        let Some(table) = std::fs::read_to_string(file).ok().and_then(|text| text.parse::<Table>().ok()) else {
            continue;
        };
        let mut found = Vec::new();
        collect(&table, kind.keys, &mut found);
        // A later file's goes before.
        if !found.is_empty() {
            dirs = found;
        }
    }
    if dirs.is_empty() {
        dirs = kind.default.iter().map(PathBuf::from).collect();
    }
    dirs
}

/// The file itself, or the files of a directory, by name.
fn files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return vec![path.to_owned()] };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Of whatever version the configuration is: containerd has had the keys at three places.
fn collect(table: &Table, keys: &[&str], found: &mut Vec<PathBuf>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => collect(inner, keys, found),
            Value::String(path) if keys.contains(&key.as_str()) => found.push(path.into()),
            Value::Array(paths) if keys.contains(&key.as_str()) => {
                found.extend(paths.iter().filter_map(Value::as_str).map(PathBuf::from));
            }
            _ => {}
        }
    }
    found.retain(|path| path.is_absolute());
}

/// Where plugins are in Debian, whoever looks there.
const DEBIAN: &str = "/usr/lib/cni";

/// The directories in which the plugin is to be found. Of a runtime's that don't exist only the first counts, and only where none exists.
pub fn plugin_dirs(root: &Path) -> BTreeSet<PathBuf> {
    let debian = below(root, DEBIAN).is_dir().then(|| PathBuf::from(DEBIAN));
    find(root).iter().flat_map(|runtime| runtime.looked_in(root)).chain(debian).collect()
}

impl Runtime {
    fn looked_in(&self, root: &Path) -> Vec<PathBuf> {
        let existing = self.plugin_dirs.iter().filter(|dir| below(root, &dir.to_string_lossy()).is_dir());
        let dirs: Vec<_> = existing.cloned().collect();
        if dirs.is_empty() { self.plugin_dirs.first().cloned().into_iter().collect() } else { dirs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine's files.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = Self(std::env::temp_dir().join(format!("viproute-runtimes-{name}-{}", std::process::id())));
            for (path, text) in files {
                let path = below(&root.0, path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), text.as_bytes()).unwrap();
            }
            root
        }

        fn dirs(&self) -> Vec<(&'static str, Vec<PathBuf>)> {
            find(&self.0).into_iter().map(|runtime| (runtime.name, runtime.plugin_dirs)).collect()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_machine_without_runtimes() {
        assert_eq!(Root::new("none", &[("/etc/hostname", "a")]).dirs(), []);
    }

    #[test]
    fn containerd_in_each_form_of_its_configuration() {
        let debian =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"/x\"\n";
        let two = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/a', '/b']\n";
        for (text, dirs) in [
            (debian, vec!["/usr/lib/cni"]),
            (two, vec!["/a", "/b"]),
            ("version = 2\n", vec!["/opt/cni/bin"]),
            ("this is no TOML", vec!["/opt/cni/bin"]),
        ] {
            let root = Root::new("containerd", &[("/etc/containerd/config.toml", text)]);
            let dirs = dirs.into_iter().map(PathBuf::from).collect();
            assert_eq!(root.dirs(), [("containerd", dirs)], "{text}");
        }
    }

    #[test]
    fn the_later_file_counts() {
        let first = ("/etc/crio/crio.conf", "[crio.network]\nplugin_dirs = [\"/one\"]\n");
        let later = ("/etc/crio/crio.conf.d/10-more.conf", "[crio.network]\nplugin_dirs = [\"/two\", \"/three\"]\n");
        let root = Root::new("crio", &[first, later, ("/usr/bin/podman", "")]);
        let found = root.dirs();
        assert_eq!(found[0], ("CRI-O", vec!["/two".into(), "/three".into()]));
        assert_eq!(found[1].0, "podman");
        assert!(found[1].1.contains(&"/usr/lib/cni".into()));
        std::fs::create_dir_all(below(&root.0, "/three")).unwrap();
        std::fs::create_dir_all(below(&root.0, "/opt/cni/bin")).unwrap();
        let dirs = ["/opt/cni/bin", "/three"].map(PathBuf::from);
        assert_eq!(plugin_dirs(&root.0).into_iter().collect::<Vec<_>>(), dirs);
        std::fs::create_dir_all(below(&root.0, DEBIAN)).unwrap();
        assert!(plugin_dirs(&root.0).contains(Path::new(DEBIAN)));
    }
}
