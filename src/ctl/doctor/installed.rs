//! How viproute came onto this machine: what has to be done again where a part of it is missing or of another version.

use std::path::Path;

use super::{Cure, advice, command, quoted};

/// Below the directory that has `sbin` or `bin` with viproutectl. Who installs it writes it there.
const NOTE: &str = "share/viproute/installed-by";

/// Who has installed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The package manager, from a `.deb`.
    Deb,
    /// It is in a container image.
    Image,
    /// `install.sh` of a release's archive.
    Archive,
    /// `install.sh` of the sources in this directory.
    Checkout(String),
    /// Nobody: it was built and is run where it is.
    Not,
}

impl Installed {
    /// As the note beside this program says.
    pub fn read() -> Self {
        let own = std::env::current_exe().unwrap_or_default();
        let note = own.parent().and_then(Path::parent).map(|prefix| prefix.join(NOTE));
        Self::parse(&note.and_then(|note| std::fs::read_to_string(note).ok()).unwrap_or_default())
    }

    fn parse(note: &str) -> Self {
        match note.trim().split_once(' ').unwrap_or((note.trim(), "")) {
            ("deb", _) => Self::Deb,
            ("image", _) => Self::Image,
            ("archive", _) => Self::Archive,
            ("checkout", dir) => Self::Checkout(dir.to_owned()),
            _ => Self::Not,
        }
    }

    /// Puts all of this version where it belongs.
    pub fn again(&self) -> Cure {
        match self {
            Self::Deb => advice(
                "Install the package again: `dpkg -i viproute_VERSION_ARCH.deb`, or `apt-get install --reinstall viproute` where it \
                 came from a repository.",
            ),
            Self::Image => advice(
                "Delete the pod of viproute's DaemonSet on this node: the one that takes its place installs the plugin of its image.",
            ),
            Self::Archive => advice("Run `./install.sh install` in the directory of the release that was unpacked."),
            Self::Checkout(dir) if Path::new(dir).join("install.sh").exists() => {
                command(format!("{} install", quoted(&Path::new(dir).join("install.sh"))))
            }
            Self::Checkout(_) | Self::Not => command("./install.sh install"),
        }
    }

    /// Makes a pod network where there is none.
    pub fn network(&self) -> Cure {
        match self {
            Self::Deb | Self::Image => advice(
                "Install a pod network, such as your cluster's; then `viproutectl node join` puts viproute into it.",
            ),
            Self::Archive | Self::Checkout(_) | Self::Not => self.again(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_cure_of_its_own() {
        let text = |note: &str| match Installed::parse(note).again() {
            Cure::Command(text) | Cure::Advice(text) => text,
        };
        assert!(text("deb\n").contains("dpkg -i"));
        assert!(text("image\n").contains("DaemonSet"));
        assert!(text("archive\n").contains("unpacked"));
        assert_eq!(text(""), "./install.sh install");
        assert_eq!(text("checkout /no/such directory\n"), "./install.sh install");
        let own = env!("CARGO_MANIFEST_DIR");
        assert_eq!(text(&format!("checkout {own}\n")), format!("{own}/install.sh install"));
    }
}
