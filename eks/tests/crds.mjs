// Validates custom resources, which come as JSON on the standard input: [[where, object], …]. Says what is wrong, one line
// each, and exits with 1 if anything is. Run by check.py, where the packages of package.json are installed.
//
// The schemas let fields through that they do not know. A validator reads every field that it does know, so what it has
// never read is a mistake, too.

import { readFileSync } from "node:fs";

const PACKAGES = {
  "cert-manager.io": "cert-manager",
  "external-secrets.io": "external-secrets",
  "gateway.envoyproxy.io": "envoy-gateway",
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
  "traefik.io": "traefik",
};
const TOP_LEVEL = ["apiVersion", "kind", "metadata", "spec"];

// `value`, which notes the path of each field in it that is read.
function watched(value, path, read) {
  if (value === null || typeof value !== "object") return value;
  const fields = Array.isArray(value) ? [] : {};
  for (const [name, field] of Object.entries(value)) fields[name] = watched(field, `${path}.${name}`, read);
  return new Proxy(fields, {
    get(target, name) {
      if (Object.hasOwn(target, name)) read.add(`${path}.${String(name)}`);
      return target[name];
    },
  });
}

function* paths(value, path) {
  if (value === null || typeof value !== "object") return;
  for (const [name, field] of Object.entries(value)) {
    yield `${path}.${name}`;
    yield* paths(field, `${path}.${name}`);
  }
}

async function problems(object) {
  const [group] = object.apiVersion.split("/");
  const found = PACKAGES[group];
  if (!found) return [`no schema for ${object.apiVersion}`];
  let Model;
  try {
    ({ [object.kind]: Model } = await import(`@kubernetes-models/${found}/${object.apiVersion}/${object.kind}`));
  } catch {
    return [`${object.apiVersion} has no ${object.kind}`];
  }
  const read = new Set();
  try {
    // The constructor makes a copy, and would read everything.
    const model = new Model({ ...object, spec: undefined });
    model.spec = watched(object.spec, "spec", read);
    model.validate();
  } catch (error) {
    return [error.message];
  }
  return [
    ...Object.keys(object).filter((name) => !TOP_LEVEL.includes(name)),
    ...[...paths(object.spec, "spec")].filter((path) => !read.has(path)),
  ].map((path) => `${path} is in no schema`);
}

let failed = false;
for (const [where, object] of JSON.parse(readFileSync(0, "utf8"))) {
  for (const problem of await problems(object)) {
    console.error(`${where}: ${problem}`);
    failed = true;
  }
}
process.exit(failed ? 1 : 0);
