"""Checks rendered manifests: strictly against the schemas of Kubernetes and of the custom resources, that what they name
is there, that the migration can run beside the replicas, that proxies pass on what they should, and that the policies for
certificates go with their hosts. And of the commands in the documentation some that have gone wrong.
scripts/lint-kubernetes runs it.

    check.py KUBERNETES_VERSION DIRECTORY_OF_NODE_MODULES FILE…
"""

import json
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent

# Made by hand, as eks/README.md says.
BY_HAND = {
    ("Secret", "gatepass"),
    ("Secret", "gatepass-master"),
    ("Secret", "gatepass-owner"),
    ("Secret", "gatepass-postgres"),
    ("ConfigMap", "rds-ca"),
}


def is_custom(manifest):
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." in group and (not group.endswith(".k8s.io") or group == "gateway.networking.k8s.io")


def settings():
    """The names of settings, as app.env.example has them, and NAME_FILE for those that are secret."""
    text = (ROOT / "app.env.example").read_text()
    names = set(re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))
    return names | {f"{name}_FILE" for name in names}


def pod_of(manifest):
    """The pod template of a workload; of a pod, itself."""
    if manifest["kind"] == "Pod":
        return manifest
    spec = manifest.get("spec", {})
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return spec["template"] if manifest["kind"] in {"Deployment", "StatefulSet", "Job", "CronJob"} else None


def references(pod):
    """The ConfigMaps, Secrets and the ServiceAccount that a pod cannot start without."""
    spec = pod["spec"]
    if "serviceAccountName" in spec:
        yield "ServiceAccount", spec["serviceAccountName"]
    for volume in spec.get("volumes", []):
        sources = volume.get("projected", {}).get("sources", []) + [volume]
        for source in sources:
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"]
            if "secret" in source:
                yield "Secret", source["secret"].get("secretName") or source["secret"]["name"]
    for container in spec.get("initContainers", []) + spec["containers"]:
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"]


def matches(selector, labels):
    def holds(expression):
        assert expression["operator"] == "In", expression
        return labels.get(expression["key"]) in expression["values"]

    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()) and all(
        map(holds, selector.get("matchExpressions", []))
    )


def selectors(manifest):
    """What a manifest says about pods of its own namespace."""
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "Service":
            yield {"matchLabels": spec["selector"]}
        case "PodDisruptionBudget" | "PodMonitor" | "Deployment" | "StatefulSet":
            yield spec["selector"]
        case "NetworkPolicy":
            yield spec["podSelector"]
            for rule in spec.get("ingress", []) + spec.get("egress", []):
                for peer in rule.get("from", []) + rule.get("to", []):
                    if "podSelector" in peer and "namespaceSelector" not in peer:
                        yield peer["podSelector"]


def services(manifest):
    """The Services that a manifest sends requests to, in its own namespace, by name and port."""
    for rule in manifest.get("spec", {}).get("rules", []):
        for path in rule.get("http", {}).get("paths", []) if manifest["kind"] == "Ingress" else []:
            service = path["backend"]["service"]
            yield service["name"], service["port"].get("name") or service["port"]["number"]
        for backend in rule.get("backendRefs", []) if manifest["kind"] == "HTTPRoute" else []:
            yield backend["name"], backend["port"]


def words(value):
    """A value as text, with its blanks made equal: kustomize breaks long lines anew."""
    return re.sub(r"(\\n|\s)+", " ", json.dumps(value, sort_keys=True))


def unresolved(manifests):
    """What the manifests of one overlay name and do not hold."""
    there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests} | BY_HAND
    for manifest in manifests:
        if manifest["kind"] == "ExternalSecret":
            there.add(("Secret", manifest["spec"]["target"]["name"]))
        if manifest["kind"] == "Certificate":
            there.add(("Secret", manifest["spec"]["secretName"]))
    pods = [pod for pod in map(pod_of, manifests) if pod]
    ports = {
        (manifest["metadata"]["name"], port[by])
        for manifest in manifests
        if manifest["kind"] == "Service"
        for port in manifest["spec"]["ports"]
        for by in ("name", "port")
    }
    known = settings()
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        pod = pod_of(manifest)
        for reference in references(pod) if pod else []:
            if reference not in there:
                yield f"{name}: there is no {' '.join(reference)}"
        for selector in selectors(manifest):
            if not any(matches(selector, pod["metadata"]["labels"]) for pod in pods):
                yield f"{name}: selects no pod: {selector}"
        # Other people's services are not here.
        if pods:
            for service in services(manifest):
                if service not in ports:
                    yield f"{name}: there is no Service {service}"
        if manifest["kind"] == "ConfigMap" and manifest["metadata"]["name"].startswith("gatepass-") and pods:
            for setting in manifest["data"].keys() - known - {"gatepass.json"}:
                yield f"{name}: {setting} is no setting"
        if manifest["kind"] == "HorizontalPodAutoscaler":
            target = manifest["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) not in there:
                yield f"{name}: there is no {target}"
        if manifest["kind"] == "PrometheusRule":
            rules = yaml.safe_load((ROOT / "eks/components/monitoring/rules.yaml").read_text())
            if words(manifest["spec"]) != words(rules):
                yield f"{name}: is not what rules.yaml says; run `make prometheus-rule`"


def migration(manifests):
    """Where the Job that migrates takes settings that are for the replicas, the Deployment does not wait for it, or proxies
    of another namespace get in."""
    by_name = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}
    deployment, job = by_name.get(("Deployment", "gatepass")), by_name.get(("Job", "gatepass-migrate"))
    if deployment and job:
        # What comes after it: the longest wait of a container that has failed.
        needed = job["spec"]["activeDeadlineSeconds"] + 300
        if deployment["spec"]["progressDeadlineSeconds"] < needed:
            yield f"Deployment gatepass: is given up before the migration's {needed} s are over"
        # scripts/deploy shows it when that deadline has passed.
        if "ttlSecondsAfterFinished" in job["spec"]:
            yield "Job gatepass-migrate: its log is gone before anybody has read it"
        [container] = pod_of(job)["spec"]["containers"]
        environment = {}
        for source in container["envFrom"]:
            environment |= by_name["ConfigMap", source["configMapRef"]["name"]]["data"]
        environment |= {variable["name"]: variable.get("value") for variable in container["env"]}
        # It has no role in AWS.
        if environment.get("DB_IAM_AUTH", "false") != "false" or environment.get("SECRETS_MANAGER_SECRET_ID"):
            yield "Job gatepass-migrate: needs AWS"
        for setting in ("DB_SOURCE_FILE", "TOKEN_SYMMETRIC_KEY_FILE", "MIGRATION_DB_SOURCE_FILE"):
            if not environment.get(setting):
                yield f"Job gatepass-migrate: {setting} is not set"
    policy = by_name.get(("NetworkPolicy", "from-gateway"))
    if policy:
        labels = policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
        if labels["gateway.envoyproxy.io/owning-gateway-namespace"] != policy["metadata"]["namespace"]:
            yield "NetworkPolicy from-gateway: lets the proxies of another namespace in"


def challenges(manifests):
    """Where the role of an issuer, by its policy in cluster/iam, may not write the challenge for the hosts of the
    certificates beside it, or more than that."""
    hosts = {
        host for manifest in manifests if manifest["kind"] == "Certificate" for host in manifest["spec"]["dnsNames"]
    }
    for manifest in manifests:
        if manifest["kind"] != "Issuer":
            continue
        for solver in manifest["spec"]["acme"]["solvers"]:
            policy = solver["dns01"]["route53"]["role"].rpartition("role/gatepass-")[2]
            statements = json.loads((ROOT / f"eks/cluster/iam/{policy}.json").read_text())["Statement"]
            [write] = [each for each in statements if each["Action"] == "route53:ChangeResourceRecordSets"]
            condition, key = write["Condition"], "route53:ChangeResourceRecordSetsNormalizedRecordNames"
            # "For all" holds of none, too.
            if condition["Null"][key] != "false":
                yield f"{policy}.json: holds for requests without names"
            names = condition["ForAllValues:StringEquals"][key]
            if set(names) != {f"_acme-challenge.{host}" for host in hosts}:
                yield f"Issuer {manifest['metadata']['name']}: for {hosts}, and {policy}.json lets it write {names}"


def proxies(manifests):
    """Where a proxy before gatepass cuts off a download, lets strangers into a trace, or sends twice what must not be."""
    if not any((each["kind"], each["metadata"]["name"]) == ("Deployment", "gatepass") for each in manifests):
        return
    timeouts, retries = {}, {}
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        for rule in manifest.get("spec", {}).get("rules", []):
            if manifest["kind"] == "HTTPRoute" and "backendRefs" in rule:
                removed = {
                    header.lower()
                    for each in rule.get("filters", [])
                    for header in each.get("requestHeaderModifier", {}).get("remove", [])
                }
                if "traceparent" not in removed:
                    yield f"{name}: passes on a stranger's traceparent"
                for match in rule.get("matches", [{"path": {"type": "PathPrefix", "value": "/"}}]):
                    timeouts[match["path"]["type"], match["path"]["value"]] = rule["timeouts"]["request"]
            if manifest["kind"] == "Ingress" and manifest["spec"]["ingressClassName"] == "nginx":
                for path in rule["http"]["paths"]:
                    retry = manifest["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-next-upstream"]
                    retries[path["pathType"], path["path"]] = retry
    # Envoy's limit is for the whole answer.
    if timeouts and timeouts.get(("Exact", "/users/me/export")) != "0s":
        yield "HTTPRoute: cuts off GET /users/me/export while it is read"
    if retries and retries.get(("Exact", "/users/me/password")) != "off":
        yield "Ingress: nginx sends PUT /users/me/password again that may have been carried out"


def overlays():
    """Overlays that bring a certain release when they are applied by hand, in place of the one that runs."""
    for file in sorted(ROOT.glob("eks/overlays/*/kustomization.yaml")):
        for image in yaml.safe_load(file.read_text())["images"]:
            if image["name"] == "gatepass" and image.get("newTag") != "use-make-deploy":
                yield f"{file.relative_to(ROOT)}: which release runs, only `make deploy` says: newTag: use-make-deploy"


# What an instance of RDS that was restored has only if it is told to, as that of eks/README.md was when it was made.
RESTORED = (
    "--db-subnet-group-name gatepass",
    "--deletion-protection",
    "--enable-iam-database-authentication",
    "--multi-az",
    "--no-publicly-accessible",
    "--vpc-security-group-ids $GROUP",
)


def commands():
    """Commands in the documentation that do not do what they say."""
    for file in [ROOT / "eks/README.md", *sorted(ROOT.glob("docs/*.md"))]:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            # By label, kubectl shows the last ten lines of each pod unless it is told otherwise.
            if re.search(r"kubectl .*\blogs\b.* -l", line) and "--tail=" not in line:
                yield f"{file.relative_to(ROOT)}:{number}: kubectl logs -l without --tail"
            # The certificate that still works goes with its Secret.
            if re.search(r"kubectl .*\bdelete secrets?\b", line):
                yield f"{file.relative_to(ROOT)}:{number}: deletes a Secret"
            # It fails in us-east-1.
            if re.search(r"create-bucket .*LocationConstraint=", line):
                yield f"{file.relative_to(ROOT)}:{number}: `aws s3 mb` makes a bucket in any region"
            if "kubectl apply -k eks/overlays/production" in line:
                yield f"{file.relative_to(ROOT)}:{number}: `make deploy` leaves the image that runs"
            # The revision before may be of the same image, or the one that somebody has just come from.
            if re.search(r"rollout undo deploy(ment)?/gatepass\b", line) and "--to-revision=" not in line:
                yield f"{file.relative_to(ROOT)}:{number}: goes back to no certain revision"
            # The operator may not have read what was changed.
            if re.search(r"rollout restart deployment/gatepass\b", line) and "force-sync=" not in file.read_text():
                yield f"{file.relative_to(ROOT)}:{number}: restarts before External Secrets has looked"
    # The runbook has `doctor` take its place.
    deployment = yaml.safe_load((ROOT / "eks/base/deployment.yaml").read_text())
    if pod_of(deployment)["spec"]["containers"][0]["args"] != ["serve"]:
        yield "base/deployment.yaml: docs/runbook.md looks for the argument `serve`"
    readme = (ROOT / "eks/README.md").read_text().replace("\\\n", " ")
    for command in re.findall(r"^aws rds (?:create|restore)-db-instance(?!s).*", readme, re.MULTILINE):
        if missing := [option for option in RESTORED if option not in command]:
            yield f"eks/README.md: {command.split()[2]}: {missing}"
    storage = re.search(r"--allocated-storage (\d+)", (ROOT / "eks/README.md").read_text())[1]
    if f"vector({int(storage) << 30})" not in (ROOT / "eks/components/monitoring/rules.yaml").read_text():
        yield f"rules.yaml: the disk is not of the {storage} GiB of eks/README.md"


def main(version, node_modules, *files):
    problems, custom, count = [*commands(), *overlays()], [], 0
    for file in map(pathlib.Path, files):
        manifests = [manifest for manifest in yaml.safe_load_all(file.read_text()) if manifest]
        for manifest in manifests:
            count += 1
            where = f"{file.stem}: {manifest['kind']} {manifest['metadata']['name']}"
            if is_custom(manifest):
                custom.append((where, manifest))
                continue
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{where}: {'.'.join(map(str, error.path))}: {error.message}")
        found = [*unresolved(manifests), *migration(manifests), *proxies(manifests), *challenges(manifests)]
        problems += [f"{file.stem}: {problem}" for problem in found]
    for problem in problems:
        print(problem, file=sys.stderr)
    # Node looks for packages from where the program is.
    program = pathlib.Path(node_modules) / "crds.mjs"
    program.write_text((HERE / "crds.mjs").read_text())
    found = subprocess.run(["node", program], input=json.dumps(custom), text=True).returncode
    if problems or found:
        sys.exit(1)
    print(f"{count} manifests, {len(custom)} of custom resources, valid for Kubernetes {version}")


if __name__ == "__main__":
    main(*sys.argv[1:])
