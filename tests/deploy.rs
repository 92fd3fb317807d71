//! `make deploy`: if a migration fails or a release does not come up, the deployment rolls back to the one before,
//! prints the migration's log and fails. If no release is named, the running one stays. The running release is not
//! always the one that was asked for last, which may never have come up. A stand-in for kubectl records what it is
//! asked, and answers as a cluster would.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::process::make_program;

/// The stand-in for kubectl. Every call but `kustomize` must be about the namespace `elsewhere`.
///
/// - `kustomize` prints what the overlay makes.
/// - `apply` writes its input to `applied`, and fails if there is a file `refused`.
/// - `get` prints the columns asked for, one line for each object in `deployment` or `replicasets`, where a column's
///   name is followed by its value.
/// - `get job` says that the migration is complete; if there is a file `unmigrated`, that it is running, then that it
///   has failed. If there is a file `unseen`, it fails.
/// - `rollout status` fails if there is a file `broken`, until there has been an undo.
/// - `logs` prints a line of the migration's, and fails if there is a file `refused`.
const KUBECTL: &str = r#"#!/usr/bin/env bash
here=$(dirname "$0")
if [ "$1" = kustomize ]; then exec cat "$2/made"; fi
[ "$1" = --namespace=elsewhere ] || { echo "$1" >>"$here/calls"; exit 1; }
shift
echo "$*" >>"$here/calls"
case "$1 $2" in
  'get deployment/gatepass' | 'get replicasets')
    test -e "$here/${2%/*}" || { echo 'cannot be read' >&2; exit 1; }
    IFS=, read -r -a columns <<<"${5#*=*=}"
    while read -r object; do
      line=
      for column in "${columns[@]}"; do
        value=" $object"
        case $value in
          *" ${column#*:} "*) value=${value#*" ${column#*:} "} line="$line ${value%% *}" ;;
          *) line="$line <none>" ;;
        esac
      done
      echo "$line"
    done <"$here/${2%/*}"
    ;;
  'get job/gatepass-migrate')
    case $(ls "$here") in
      *unseen*) exit 1 ;;
      *unmigrated*) grep -q '^slept' "$here/calls" && echo 'FailureTarget Failed' ;;
      *) echo 'SuccessCriteriaMet Complete' ;;
    esac
    true
    ;;
  'rollout status') ! test -e "$here/broken" || grep -q 'rollout undo' "$here/calls" ;;
  'apply -f') cat >"$here/applied" && ! test -e "$here/refused" ;;
  'logs '*) echo 'what the migration says' && ! test -e "$here/refused" ;;
esac
"#;

/// The stand-in for sleep. It takes no time.
const SLEEP: &str = r#"#!/usr/bin/env bash
echo "slept $1" >>"$(dirname "$0")/calls"
"#;

/// What the overlay makes, in the order and with the indentation of kustomize.
const MADE: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: nowhere
---
apiVersion: apps/v1
kind: Deployment
metadata:
  labels:
    name: gatepass
  name: gatepass
  namespace: elsewhere
spec:
  template:
    spec:
      containers:
      - args:
        - serve
        image: registry.example.com/gatepass:use-make-deploy
        name: gatepass
      - args:
        - beside
        image: registry.example.com/other:2
        name: other
---
apiVersion: batch/v1
kind: Job
metadata:
  name: gatepass-migrate
  namespace: elsewhere
spec:
  template:
    spec:
      containers:
      - args:
        - migrate
        image: registry.example.com/gatepass:use-make-deploy
        name: migrate
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: other
  namespace: nowhere
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: gatepass
  namespace: nowhere
";

/// The running image, and the one to be deployed.
const RUNS: &str = "registry.example.com/gatepass:1.4.0";
const NEW: &str = "registry.example.com/gatepass@sha256:0123abc";
/// An image that does not come up, and the overlay's own.
const BAD: &str = "registry.example.com/gatepass:1.5.0";
const PLACEHOLDER: &str = "registry.example.com/gatepass:use-make-deploy";

/// The object of a release, with further columns.
fn release(revision: u32, image: &str, more: &str) -> String {
    format!(
        ".metadata.annotations.deployment\\.kubernetes\\.io/revision {revision} \
         .spec.template.spec.containers[?(@.name==\"gatepass\")].image {image} {more} \n"
    )
}

/// The release that was asked for last, and its progress. The controller has seen everything that was asked for.
fn deployment(revision: u32, image: &str, progress: &str) -> String {
    let progress = format!(".status.conditions[?(@.type==\"Progressing\")].reason {progress}");
    let more = format!("{progress} .metadata.generation 4 .status.observedGeneration 4");
    release(revision, image, &more)
}

fn replica_set(owner: &str, revision: u32, image: &str, available: u32) -> String {
    let owner = format!(".metadata.ownerReferences[0].name {owner}");
    // Kubernetes leaves out a zero here.
    let available =
        if available == 0 { String::new() } else { format!(".status.availableReplicas {available}") };
    release(revision, image, &format!("{owner} {available}"))
}

struct Cluster(TempDir);

impl Cluster {
    /// With [`RUNS`] in revision 7.
    fn new() -> Self {
        Self::with(&deployment(7, RUNS, "NewReplicaSetAvailable"), &[replica_set("gatepass", 7, RUNS, 3)])
    }

    /// Before the first release.
    fn empty() -> Self {
        Self::with("", &[])
    }

    fn with(deployment: &str, replica_sets: &[String]) -> Self {
        let dir = TempDir::with_prefix("gatepass-test-").unwrap();
        for (file, text) in [
            ("scripts/deploy", include_str!("../scripts/deploy")),
            ("bin/kubectl", KUBECTL),
            ("bin/sleep", SLEEP),
            ("bin/deployment", deployment),
            ("bin/replicasets", &replica_sets.concat()),
            ("eks/overlays/test/kustomization.yaml", "resources: []\n"),
            ("eks/overlays/test/made", MADE),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            make_program(&path, text.as_bytes());
        }
        Self(dir)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        Command::new("bash")
            .arg(self.path("scripts/deploy"))
            .args(arguments)
            .env("PATH", path)
            .output()
            .unwrap()
    }

    /// Deploys [`NEW`].
    fn deploy(&self, overlay: &str) -> Output {
        self.run(&[overlay, NEW])
    }

    /// The images in what was applied, in order.
    fn images(&self) -> Vec<String> {
        let applied = fs::read_to_string(self.path("bin/applied")).unwrap_or_default();
        applied.lines().filter_map(|line| line.trim().strip_prefix("image: ")).map(str::to_owned).collect()
    }

    /// What kubectl was asked to change or to wait for, in order.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("bin/calls")).unwrap_or_default();
        calls.lines().filter(|call| !call.starts_with("get ")).map(str::to_owned).collect()
    }

    fn set(&self, what: &str) {
        fs::write(self.path(&format!("bin/{what}")), "").unwrap();
    }
}

const FORWARD: [&str; 3] = [
    "delete job/gatepass-migrate --ignore-not-found",
    "apply -f -",
    "rollout status deployment/gatepass --timeout=15m",
];
/// What kubectl is asked, besides `get`, when a release does not come up.
const WHY: [&str; 1] = ["logs --selector=app.kubernetes.io/component=migrate --tail=50 --prefix"];
const BACK: [&str; 2] =
    ["rollout undo deployment/gatepass --to-revision=7", "rollout status deployment/gatepass --timeout=10m"];

#[test]
fn a_release_that_comes_up_stays() {
    let cluster = Cluster::new();
    assert!(cluster.deploy("test").status.success());
    assert_eq!(cluster.calls(), FORWARD);
    assert_eq!(cluster.images(), [NEW, "registry.example.com/other:2", NEW]);
}

/// A changed setting brings back no older release, neither of the service nor of its migration.
#[test]
fn the_running_release_stays_if_none_is_named() {
    let cluster = Cluster::new();
    for arguments in [&["test"][..], &["test", ""]] {
        let output = cluster.run(arguments);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(RUNS), "{output:?}");
        assert_eq!(cluster.images(), [RUNS, "registry.example.com/other:2", RUNS]);
    }
}

/// Before the first release, after someone has applied the overlay as it is, and while the first release does not come
/// up.
#[test]
fn a_release_must_be_named_if_none_is_running() {
    for cluster in [
        Cluster::empty(),
        Cluster::with(
            &deployment(1, PLACEHOLDER, "ReplicaSetUpdated"),
            &[replica_set("gatepass", 1, PLACEHOLDER, 0)],
        ),
        // Scaled to 0, the rollout counts as finished.
        Cluster::with(
            &deployment(1, PLACEHOLDER, "NewReplicaSetAvailable"),
            &[replica_set("gatepass", 1, PLACEHOLDER, 0)],
        ),
        Cluster::with(
            &deployment(1, BAD, "ProgressDeadlineExceeded"),
            &[replica_set("gatepass", 1, BAD, 0), replica_set("other", 9, RUNS, 3)],
        ),
    ] {
        let output = cluster.run(&["test"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no release is running yet"), "{output:?}");
        assert_eq!(cluster.calls(), [""; 0]);
        // A release that is named is the first, with nothing to go back to.
        cluster.set("broken");
        let output = cluster.deploy("test");
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no release before it"), "{output:?}");
        assert_eq!(cluster.calls(), [&FORWARD[..], &WHY].concat());
    }
}

/// Clusters in which a release was interrupted, or the overlay was applied as it is, while the release before it
/// serves.
fn unfinished() -> impl Iterator<Item = Cluster> {
    let replica_sets = |image| {
        let other = replica_set("other", 9, NEW, 9);
        let more = [replica_set("gatepass", 8, image, 1), replica_set("gatepass", 7, RUNS, 3)];
        [&[replica_set("gatepass", 6, RUNS, 0), other][..], &more].concat()
    };
    let lagging =
        deployment(8, BAD, "NewReplicaSetAvailable").replace("observedGeneration 4", "observedGeneration 3");
    [
        (deployment(8, BAD, "ReplicaSetUpdated"), BAD),
        (deployment(8, BAD, "ProgressDeadlineExceeded"), BAD),
        (deployment(8, PLACEHOLDER, "ReplicaSetUpdated"), PLACEHOLDER),
        // Asked for a moment ago: the controller has not seen it yet.
        (lagging, BAD),
        (release(8, BAD, ".metadata.generation 4"), BAD),
    ]
    .into_iter()
    .map(move |(deployment, image)| Cluster::with(&deployment, &replica_sets(image)))
}

/// An unfinished release cannot stay: its migration must not run because someone changes a setting.
#[test]
fn an_unfinished_release_is_not_kept_without_being_named() {
    for cluster in unfinished() {
        let output = cluster.run(&["test"]);
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8_lossy(&output.stderr);
        for part in ["not finished", "--namespace=elsewhere", "--to-revision=7", "DEPLOY_IMAGE="] {
            assert!(told.contains(part), "{told}");
        }
        assert_eq!(cluster.calls(), [""; 0]);
    }
}

#[test]
fn a_rollback_returns_to_the_release_that_ran_not_the_last_requested() {
    for cluster in unfinished() {
        cluster.set("broken");
        assert_eq!(cluster.deploy("test").status.code(), Some(1));
        assert_eq!(cluster.calls(), [&FORWARD[..], &WHY, &BACK].concat());
    }
}

/// Such a release has no replicas to look at.
#[test]
fn a_release_that_was_scaled_to_0_stays() {
    let cluster = Cluster::with(
        &deployment(7, RUNS, "NewReplicaSetAvailable"),
        &[replica_set("gatepass", 7, RUNS, 0), replica_set("gatepass", 6, NEW, 0)],
    );
    assert!(cluster.run(&["test"]).status.success());
    assert_eq!(cluster.images(), [RUNS, "registry.example.com/other:2", RUNS]);
    cluster.set("refused");
    assert_eq!(cluster.deploy("test").status.code(), Some(1));
    assert!(cluster.calls().ends_with(&BACK.map(str::to_owned)), "{:?}", cluster.calls());
}

/// It is not mistaken for a cluster in which nothing runs.
#[test]
fn a_cluster_that_cannot_be_read_is_not_touched() {
    for file in ["deployment", "replicasets"] {
        let cluster = unfinished().next().unwrap();
        fs::remove_file(cluster.path(&format!("bin/{file}"))).unwrap();
        let output = cluster.deploy("test");
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be read"), "{output:?}");
        assert_eq!(cluster.calls(), [""; 0]);
    }
}

#[test]
fn an_overlay_with_an_image_of_its_own_touches_nothing() {
    let cluster = Cluster::new();
    fs::write(cluster.path("eks/overlays/test/made"), MADE.replace("use-make-deploy", "first")).unwrap();
    let output = cluster.deploy("test");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("use-make-deploy"), "{output:?}");
    assert!(!cluster.path("bin/calls").exists());
}

#[test]
fn a_release_that_does_not_come_up_is_taken_back() {
    let cluster = Cluster::new();
    cluster.set("broken");
    let output = cluster.deploy("test");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    for part in ["what the migration says", "going back to revision 7"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(cluster.calls(), [&FORWARD[..], &WHY, &BACK].concat());
}

#[test]
fn a_failed_migration_ends_the_rollout_at_once() {
    let cluster = Cluster::new();
    cluster.set("unmigrated");
    let output = cluster.deploy("test");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    for part in ["the migration has failed", "what the migration says", "going back to revision 7"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(cluster.calls(), [&FORWARD[..2], &["slept 2"], &WHY, &BACK].concat());
}

/// Whoever deploys need not see the Job; the rollout tells all the same.
#[test]
fn a_migration_that_cannot_be_seen_leaves_the_rollout_to_tell() {
    let cluster = Cluster::new();
    cluster.set("unseen");
    assert!(cluster.deploy("test").status.success());
    assert_eq!(cluster.calls(), FORWARD);
}

/// The overlay may have been applied in part. A `rollout undo` without a revision could then go back one release too
/// far.
#[test]
fn a_refused_overlay_restores_the_release_that_ran() {
    let cluster = Cluster::new();
    cluster.set("refused");
    assert_eq!(cluster.deploy("test").status.code(), Some(1));
    assert_eq!(cluster.calls(), [&FORWARD[..2], &WHY, &BACK].concat());
}

#[test]
fn a_first_release_that_does_not_come_up_is_left_to_be_looked_at() {
    let cluster = Cluster::empty();
    cluster.set("broken");
    assert_eq!(cluster.deploy("test").status.code(), Some(1));
    assert_eq!(cluster.calls(), [&FORWARD[..], &WHY].concat());
}

#[test]
fn an_overlay_without_the_deployment_touches_nothing() {
    let cluster = Cluster::new();
    fs::write(cluster.path("eks/overlays/test/made"), MADE.replace("name: gatepass", "name: another"))
        .unwrap();
    let output = cluster.deploy("test");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no Deployment gatepass"), "{output:?}");
    assert!(!cluster.path("bin/calls").exists());
}

#[test]
fn wrong_arguments_touch_nothing() {
    let cluster = Cluster::new();
    for arguments in [&["nowhere", NEW][..], &["", NEW], &[], &["test", NEW, "more"]] {
        assert_eq!(cluster.run(arguments).status.code(), Some(2));
    }
    assert!(!cluster.path("bin/calls").exists());
}
