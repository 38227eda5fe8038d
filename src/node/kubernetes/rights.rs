//! The rights that viprouted takes at the API, as `conf/kubernetes-rbac.yaml` gives them, and which of them it lacks.

use futures::future::join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

/// Verbs on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Right {
    group: &'static str,
    /// With its subresource: `services/status`.
    resource: &'static str,
    /// One object alone.
    name: Option<&'static str>,
    verbs: &'static [&'static str],
    /// Where addresses come from a pool.
    of_pool: bool,
}

const fn right(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Right {
    Right { group, resource, name: None, verbs, of_pool: false }
}

const RIGHTS: [Right; 10] = [
    right("", "services", &["list", "watch"]),
    right("", "pods", &["list", "watch"]),
    right("", "nodes", &["list", "watch"]),
    right("discovery.k8s.io", "endpointslices", &["list", "watch"]),
    Right { name: Some("kube-system"), ..right("", "namespaces", &["get"]) },
    right("", "services/status", &["patch"]),
    Right { of_pool: true, ..right("networking.k8s.io", "ipaddresses", &["list", "watch", "create", "delete"]) },
    right("networking.k8s.io", "servicecidrs", &["list", "watch"]),
    right("networking.k8s.io", "networkpolicies", &["list", "watch"]),
    right("events.k8s.io", "events", &["create", "patch"]),
];

/// What viprouted may not do, a sentence each. What can't be asked isn't said: that the API doesn't answer is known otherwise.
pub async fn missing(client: &kube::Client, has_pool: bool) -> Vec<String> {
    let taken = RIGHTS.iter().filter(|right| has_pool || !right.of_pool);
    let each = taken.flat_map(|right| right.verbs.iter().map(move |verb| (right, *verb)));
    let asked = each.map(|(right, verb)| async move { (!may(client, right, verb).await).then(|| shown(right, verb)) });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn may(client: &kube::Client, right: &Right, verb: &str) -> bool {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let (resource, subresource) = right.resource.split_once('/').unzip();
    let attributes = ResourceAttributes {
        group: Some(right.group.to_owned()),
        resource: Some(resource.unwrap_or(right.resource).to_owned()),
        subresource: subresource.map(str::to_owned),
        name: right.name.map(str::to_owned),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = reviews.create(&PostParams::default(), &review).await;
    answer.ok().and_then(|review| review.status).is_none_or(|status| status.allowed)
}

fn shown(right: &Right, verb: &str) -> String {
    let group = if right.group.is_empty() { String::new() } else { format!(".{}", right.group) };
    let name = right.name.map(|name| format!(" {name}")).unwrap_or_default();
    format!("viprouted may not {verb} {}{group}{name} at the Kubernetes API", right.resource)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MANIFEST: &str = include_str!("../../../conf/kubernetes-rbac.yaml");

    fn list(line: &str, key: &str) -> Option<Vec<String>> {
        let text = line.trim().trim_start_matches("- ").strip_prefix(key)?.strip_prefix(": [")?.strip_suffix(']')?;
        Some(text.split(", ").map(|word| word.trim_matches('"').to_owned()).collect())
    }

    /// `group resource name verb` of each rule.
    fn given() -> BTreeSet<String> {
        let mut given = BTreeSet::new();
        let (mut groups, mut resources, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for line in MANIFEST.lines() {
            if let Some(found) = list(line, "apiGroups") {
                (groups, names) = (found, vec![String::new()]);
            } else if let Some(found) = list(line, "resources") {
                resources = found;
            } else if let Some(found) = list(line, "resourceNames") {
                names = found;
            } else if let Some(verbs) = list(line, "verbs") {
                for (group, resource) in groups.iter().flat_map(|group| resources.iter().map(move |one| (group, one))) {
                    for (name, verb) in names.iter().flat_map(|name| verbs.iter().map(move |verb| (name, verb))) {
                        given.insert(format!("{group} {resource} {name} {verb}"));
                    }
                }
            }
        }
        given
    }

    #[test]
    fn the_manifest_gives_what_is_asked_for_and_no_more() {
        let each = RIGHTS.iter().flat_map(|right| right.verbs.iter().map(move |verb| (right, verb)));
        let taken = each.map(|(Right { group, resource, name, .. }, verb)| {
            format!("{group} {resource} {} {verb}", name.unwrap_or_default())
        });
        assert_eq!(taken.collect::<BTreeSet<_>>(), given());
    }
}
