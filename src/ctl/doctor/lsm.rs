//! What keeps root from a file: a security module's profile, where there is one.

use std::fs;

/// What confines this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confined {
    /// `AppArmor`, by this profile.
    AppArmor(String),
    /// `SELinux`, by this context.
    SeLinux(String),
}

impl Confined {
    /// Nothing where the module only reports what it would refuse.
    pub fn read() -> Option<Self> {
        // One of its own where several modules share the older file (Linux 5.8).
        let own = fs::read_to_string("/proc/self/attr/apparmor/current").unwrap_or_default();
        let current = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
        let enforcing = fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1");
        Self::of(&own).or_else(|| Self::of(&current)).or_else(|| Self::of_selinux(&current, enforcing))
    }

    /// `docker-default (enforce)`; `unconfined` has no mode.
    fn of(label: &str) -> Option<Self> {
        let label = label.trim_matches(['\n', '\0', ' ']);
        label.strip_suffix(" (enforce)").map(|profile| Self::AppArmor(profile.to_owned()))
    }

    /// `system_u:system_r:container_t:s0:c1,c2`
    fn of_selinux(label: &str, enforcing: bool) -> Option<Self> {
        let label = label.trim_matches(['\n', '\0', ' ']);
        (enforcing && label.split(':').count() >= 4).then(|| Self::SeLinux(label.to_owned()))
    }

    /// What it does, and what lifts it.
    pub fn cure(&self) -> String {
        match self {
            Self::AppArmor(profile) => format!(
                "AppArmor's profile {profile} denies it. In a pod: securityContext.appArmorProfile.type Unconfined; in docker or podman: \
                 --security-opt apparmor=unconfined; for a service: a rule for it in that profile."
            ),
            Self::SeLinux(context) => format!(
                "SELinux denies it to {context}. In a pod: securityContext.seLinuxOptions.type spc_t; in podman: --security-opt \
                 label=disable; `ausearch -m avc -ts recent` shows what was denied."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let apparmor = |profile: &str| Some(Confined::AppArmor(profile.to_owned()));
        assert_eq!(Confined::of("docker-default (enforce)\n"), apparmor("docker-default"));
        assert_eq!(Confined::of("cri-containerd.apparmor.d (enforce)"), apparmor("cri-containerd.apparmor.d"));
        for free in ["unconfined\n", "docker-default (complain)\n", "", "system_u:system_r:container_t:s0:c1,c2\0"] {
            assert_eq!(Confined::of(free), None, "{free}");
        }
        let context = "system_u:system_r:container_t:s0:c1,c2";
        assert_eq!(Confined::of_selinux(&format!("{context}\0"), true), Some(Confined::SeLinux(context.to_owned())));
        assert_eq!(Confined::of_selinux(context, false), None, "permissive");
        assert_eq!(Confined::of_selinux("unconfined\n", true), None);
    }
}
