//! `make deploy`: a release that does not come up is taken back to the one before, and the deployment fails; without a
//! release, the one that runs stays. Against a kubectl that writes down what it is asked, and answers as a cluster would.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::process::make_program;

/// `rollout status` fails until there has been an undo; `get deployment` prints the revision in `revision` or the image in
/// `image`, `kustomize` what the overlay makes; what is applied is in `applied`. Whatever else is asked has to be about the
/// namespace `elsewhere`.
const KUBECTL: &str = r#"#!/bin/sh
here=$(dirname "$0")
if [ "$1" = kustomize ]; then exec cat "$2/made"; fi
[ "$1" = --namespace=elsewhere ] || { echo "$1" >>"$here/calls"; exit 1; }
shift
echo "$*" >>"$here/calls"
case "$*" in
  'get deployment/gatepass '*image*) cat "$here/image" ;;
  'get deployment/gatepass '*revision*) cat "$here/revision" ;;
esac
case "$1 $2" in
  'rollout status') ! test -e "$here/broken" || grep -q 'rollout undo' "$here/calls" ;;
  'apply -f') cat >"$here/applied" && ! test -e "$here/refused" ;;
esac
"#;

/// In the order and with the indentation of kustomize.
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

/// The image that runs, and one that is to.
const RUNS: &str = "registry.example.com/gatepass:1.4.0";
const NEW: &str = "registry.example.com/gatepass@sha256:0123abc";

struct Cluster(TempDir);

impl Cluster {
    fn new(revision: &str) -> Self {
        let dir = TempDir::with_prefix("gatepass-test-").unwrap();
        for (file, text) in [
            ("scripts/deploy", include_str!("../scripts/deploy")),
            ("bin/kubectl", KUBECTL),
            ("bin/revision", revision),
            ("bin/image", if revision.is_empty() { "" } else { RUNS }),
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

    /// A release.
    fn deploy(&self, overlay: &str) -> Output {
        self.run(&[overlay, NEW])
    }

    /// The images of what was applied, in order.
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
    "rollout status deployment/gatepass --timeout=30m",
];
const BACK: [&str; 2] =
    ["rollout undo deployment/gatepass --to-revision=7", "rollout status deployment/gatepass --timeout=10m"];

#[test]
fn a_release_that_comes_up_stays() {
    let cluster = Cluster::new("7");
    assert!(cluster.deploy("test").status.success());
    assert_eq!(cluster.calls(), FORWARD);
    assert_eq!(cluster.images(), [NEW, "registry.example.com/other:2", NEW]);
}

/// Whoever changes a setting goes back to no older release, and a migration of its own does not, either.
#[test]
fn where_no_release_is_named_the_one_that_runs_stays() {
    let cluster = Cluster::new("7");
    for arguments in [&["test"][..], &["test", ""]] {
        let output = cluster.run(arguments);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(RUNS), "{output:?}");
        assert_eq!(cluster.images(), [RUNS, "registry.example.com/other:2", RUNS]);
    }
}

/// Before the first release, and after somebody has applied the overlay as it is.
#[test]
fn where_none_runs_a_release_has_to_be_named() {
    for (revision, image) in [("", ""), ("7", "registry.example.com/gatepass:use-make-deploy")] {
        let cluster = Cluster::new(revision);
        fs::write(cluster.path("bin/image"), image).unwrap();
        let output = cluster.run(&["test"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("DEPLOY_IMAGE="), "{output:?}");
        assert_eq!(cluster.calls(), [""; 0]);
    }
}

#[test]
fn an_overlay_with_an_image_of_its_own_touches_nothing() {
    let cluster = Cluster::new("7");
    fs::write(cluster.path("eks/overlays/test/made"), MADE.replace("use-make-deploy", "first")).unwrap();
    let output = cluster.deploy("test");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("use-make-deploy"), "{output:?}");
    assert!(!cluster.path("bin/calls").exists());
}

#[test]
fn a_release_that_does_not_come_up_is_taken_back() {
    let cluster = Cluster::new("7");
    cluster.set("broken");
    let output = cluster.deploy("test");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("going back to revision 7"), "{output:?}");
    assert_eq!(cluster.calls(), [&FORWARD[..], &BACK].concat());
}

/// It may have been applied in part, and `rollout undo` alone would then go back to the release before the last.
#[test]
fn an_overlay_that_the_cluster_refuses_leaves_what_ran() {
    let cluster = Cluster::new("7");
    cluster.set("refused");
    assert_eq!(cluster.deploy("test").status.code(), Some(1));
    assert_eq!(cluster.calls(), [&FORWARD[..2], &BACK].concat());
}

#[test]
fn a_first_release_that_does_not_come_up_is_left_to_be_looked_at() {
    let cluster = Cluster::new("");
    cluster.set("broken");
    assert_eq!(cluster.deploy("test").status.code(), Some(1));
    assert_eq!(cluster.calls(), FORWARD);
}

#[test]
fn an_overlay_without_the_deployment_touches_nothing() {
    let cluster = Cluster::new("7");
    fs::write(cluster.path("eks/overlays/test/made"), MADE.replace("name: gatepass", "name: another"))
        .unwrap();
    let output = cluster.deploy("test");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no Deployment gatepass"), "{output:?}");
    assert!(!cluster.path("bin/calls").exists());
}

#[test]
fn a_wrong_use_touches_nothing() {
    let cluster = Cluster::new("7");
    for arguments in [&["nowhere", NEW][..], &["", NEW], &[], &["test", NEW, "more"]] {
        assert_eq!(cluster.run(arguments).status.code(), Some(2));
    }
    assert!(!cluster.path("bin/calls").exists());
}
