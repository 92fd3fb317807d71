//! Whatever comes in, the answer is the right problem and never a 500. Tables of bad input run over every route in the
//! OpenAPI document, which must also declare every status seen here. Input that passes the code's rules also passes the
//! database's constraints.

use std::collections::BTreeSet;

use axum::http::Method;
use base64::{Engine, engine::general_purpose::STANDARD};
use gatepass::token::{Issuer, Lifetime, Party, Subject, SymmetricKey};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Map, Value, json};
use time::Duration;
use uuid::Uuid;

use crate::app::{Answer, App, KEY, PASSWORD, START, Story};

const METHODS: [&str; 7] = ["get", "head", "post", "put", "patch", "delete", "trace"];
const FORM: &str = "application/x-www-form-urlencoded";
const NOBODY: &str = "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e";

/// One operation of the OpenAPI document.
struct Operation {
    path: String,
    method: Method,
    declared: Value,
    /// The schema of its JSON body.
    body: Option<Map<String, Value>>,
    /// The schema of its form.
    form: Option<Map<String, Value>>,
}

/// Every operation that is documented, which is every one that is served.
fn operations() -> Vec<Operation> {
    let document: Value = serde_json::from_str(&gatepass::http::document()).unwrap();
    let mut operations = Vec::new();
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in METHODS {
            let Some(declared) = item.get(method) else { continue };
            let id = declared["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id}: two operations have this id");
            let schema = |media_type: &str| {
                let schema = &declared["requestBody"]["content"][media_type]["schema"];
                let schema = match schema["$ref"].as_str() {
                    Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
                    None => schema,
                };
                schema.as_object().cloned()
            };
            operations.push(Operation {
                path: path.clone(),
                method: method.to_uppercase().parse().unwrap(),
                declared: declared.clone(),
                body: schema("application/json"),
                form: schema(FORM),
            });
        }
    }
    assert!(operations.len() >= 15, "{}", operations.len());
    operations
}

impl Operation {
    /// Whether it takes credentials of this scheme.
    fn takes(&self, scheme: &str) -> bool {
        let requirements = self.declared["security"].as_array();
        requirements.into_iter().flatten().any(|requirement| requirement.get(scheme).is_some())
    }

    /// Whether it may be called without credentials.
    fn is_open(&self) -> bool {
        self.declared["security"].as_array().is_none_or(|requirements| requirements.contains(&json!({})))
    }

    /// The path, with `id` for every parameter in it.
    fn address(&self, id: &str) -> String {
        let segments =
            self.path.split('/').map(|segment| if segment.starts_with('{') { id } else { segment });
        segments.collect::<Vec<_>>().join("/")
    }

    fn request(&self, app: &App) -> Story {
        app.request(self.method.clone(), &self.address(NOBODY))
    }

    /// The names of its query parameters.
    fn query_parameters(&self) -> Vec<&str> {
        let parameters = self.declared["parameters"].as_array().into_iter().flatten();
        let in_query = parameters.filter(|parameter| parameter["in"] == "query");
        in_query.map(|parameter| parameter["name"].as_str().unwrap()).collect()
    }

    fn properties(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.body.iter().chain(&self.form).flat_map(|schema| schema["properties"].as_object().unwrap())
    }

    fn required(&self) -> impl Iterator<Item = &str> {
        let required = self
            .body
            .iter()
            .chain(&self.form)
            .flat_map(|schema| schema.get("required"))
            .flat_map(Value::as_array);
        required.flatten().map(|name| name.as_str().unwrap())
    }

    /// A good form, made from the document's examples, with `more` appended.
    fn example_form(&self, more: &str) -> String {
        let parameters =
            self.example().into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned()));
        format!("{}{more}", serde_urlencoded::to_string(parameters.collect::<Vec<_>>()).unwrap())
    }

    /// A good body, made from the document's examples.
    fn example(&self) -> Map<String, Value> {
        let example = |(name, schema): (&String, &Value)| {
            let example = schema.get("example").or_else(|| schema["examples"].get(0));
            (name.clone(), example.unwrap_or_else(|| panic!("{} {name}: no example", self.path)).clone())
        };
        self.properties().map(example).collect()
    }

    /// That body with one property replaced by this text, which need not be JSON.
    fn example_with(&self, property: &str, text: &[u8]) -> Vec<u8> {
        let mut body = b"{".to_vec();
        for (name, value) in self.example() {
            let value = if name == property { text.to_vec() } else { value.to_string().into_bytes() };
            body.extend([format!("{}:", json!(name)).as_bytes(), &value, b","].concat());
        }
        body.pop();
        body.push(b'}');
        body
    }

    /// Checks an answer against the `expected` statuses and codes, and against the document.
    #[track_caller]
    fn check(&self, what: &str, answer: Answer, expected: &[(u16, &str)]) -> Value {
        let status = answer.status.as_u16();
        let found = expected.iter().find(|(expected, _)| *expected == status);
        let Some((_, code)) = found else {
            panic!("{} {}: {what}: {status}, not {expected:?}: {}", self.method, self.path, answer.body)
        };
        self.assert_declared(&answer);
        answer.expect_problem(status, code)
    }

    #[track_caller]
    fn assert_declared(&self, answer: &Answer) {
        let status = answer.status.as_str();
        let declared = &self.declared["responses"][status];
        assert!(declared.is_object(), "{} {}: {status} is not documented", self.method, self.path);
        // An empty answer has no content type.
        let kind = answer.header("content-type").split(';').next().filter(|kind| !kind.is_empty());
        let kinds: Vec<_> = declared["content"].as_object().into_iter().flat_map(Map::keys).collect();
        assert!(
            if kinds.is_empty() {
                kind.is_none()
            } else {
                kinds.iter().any(|declared| Some(&***declared) == kind)
            },
            "{} {}: {status} is {kind:?}, and documented as {kinds:?}",
            self.method,
            self.path
        );
        for (name, header) in declared["headers"].as_object().unwrap() {
            // The description names the problem that comes without this header.
            let except = header["description"].as_str().unwrap().split("Not with `").nth(1);
            let except = except.and_then(|rest| rest.split('`').next());
            let is_left_out = except.is_some_and(|code| answer.body.contains(&format!("\"{code}\"")));
            assert_ne!(
                answer.headers.contains_key(name.as_str()),
                is_left_out,
                "{} {}: {status} and {name}: {}",
                self.method,
                self.path,
                answer.body
            );
        }
    }
}

/// The field and code of the one fault in a 422.
fn fault(problem: &Value) -> (&str, &str) {
    let [error] = &problem["errors"].as_array().unwrap()[..] else { panic!("{problem}") };
    (error["field"].as_str().unwrap(), error["code"].as_str().unwrap())
}

#[tokio::test]
async fn every_bad_body_is_refused_on_every_route_that_takes_json() {
    let malformed = [(400, "malformed_json")];
    let invalid = [(422, "validation_failed")];
    let either = [malformed[0], invalid[0]];

    let app = App::new().await;
    let admin = app.login_admin("root").await;
    let operations: Vec<_> = operations().into_iter().filter(|operation| operation.body.is_some()).collect();
    assert!(operations.len() >= 3);
    for operation in &operations {
        let request = || operation.request(&app).bearer(&admin);
        let send = async |body: Vec<u8>| {
            request().header("content-type", "application/json").body(body).send().await
        };
        let good = Value::Object(operation.example()).to_string();

        // Not JSON.
        for body in ["", " \n", "hello", "{", "}", "nul", "'a'", "{a:1}", "{,}", "\u{feff}{}", "NaN", "\0"] {
            operation.check(body, send(body.into()).await, &malformed);
        }
        for end in 1..good.len() {
            operation.check(&good[..end], send(good[..end].into()).await, &malformed);
        }
        for tail in ["x", "{}", "\0", ","] {
            operation.check(tail, send(format!("{good}{tail}").into()).await, &malformed);
        }
        operation.check(
            "UTF-16",
            send(good.encode_utf16().flat_map(u16::to_be_bytes).collect()).await,
            &malformed,
        );

        // JSON, but not an object.
        let values: Vec<Value> = operation.example().into_iter().map(|(_, value)| value).collect();
        for body in ["null", "true", "0", "\"text\"", "[]", "[{}]", &json!(values).to_string()] {
            let problem = operation.check(body, send(body.into()).await, &invalid);
            assert_eq!(fault(&problem), ("body", "wrong_type"), "{body}");
        }

        // An object, but the wrong one.
        for name in operation.required() {
            let mut body = operation.example();
            body.remove(name);
            let problem = operation.check(name, send(json!(body).to_string().into()).await, &invalid);
            assert_eq!(fault(&problem), (name, "required"));
        }
        let mut more = operation.example();
        more.insert("unexpected".into(), json!({"a": [null]}));
        let problem = operation.check("unknown", send(json!(more).to_string().into()).await, &invalid);
        assert_eq!(fault(&problem), ("unexpected", "unknown_field"));
        operation.check("a NUL in a key", send(br#"{"\u0000":1}"#.to_vec()).await, &invalid);
        operation.check("no key", send(br#"{"":1}"#.to_vec()).await, &invalid);

        for (name, schema) in operation.properties() {
            let types: Vec<&str> = match &schema["type"] {
                Value::Array(types) => types.iter().map(|name| name.as_str().unwrap()).collect(),
                one => vec![one.as_str().unwrap()],
            };
            let kinds = [
                ("null", "null"),
                ("boolean", "true"),
                ("integer", "7"),
                ("number", "1.5"),
                ("number", "1e999"),
                ("string", "\"text\""),
                ("array", "[]"),
                ("array", "[\"text\"]"),
                ("object", "{}"),
                ("object", "{\"$ne\":null}"),
            ];
            for (kind, value) in kinds.iter().filter(|(kind, _)| !types.contains(kind)) {
                let what = format!("{name}: {kind} {value}");
                let answer = send(operation.example_with(name, value.as_bytes())).await;
                let problem = operation.check(&what, answer, &invalid);
                assert_eq!(fault(&problem), (name.as_str(), "wrong_type"), "{what}");
            }

            let key = json!(name);
            let twice = format!("{{{key}:{value},{}", &good[1..], value = operation.example()[name]);
            let problem = operation.check(name, send(twice.into()).await, &invalid);
            assert_eq!(fault(&problem), (name.as_str(), "duplicate_field"));

            let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes();
            operation.check(name, send(operation.example_with(name, &deep)).await, &either);
            operation.check(name, send(operation.example_with(name, &deep[..10_000])).await, &either);

            if types.contains(&"string") {
                for bad in [
                    &b"\"\xff\""[..],
                    b"\"\xc0\x80\"",
                    b"\"\xed\xa0\x80\"",
                    b"\"a\xf0\x9f\"",
                    b"\"a\nb\"",
                    b"\"a\0b\"",
                ] {
                    let answer = send(operation.example_with(name, bad)).await;
                    operation.check(&format!("{name}: {bad:?}"), answer, &malformed);
                }
                for bad in [r#""\ud800""#, r#""\udc00\ud800""#, r#""\u12""#, r#""\x41""#] {
                    let answer = send(operation.example_with(name, bad.as_bytes())).await;
                    operation.check(&format!("{name}: {bad}"), answer, &malformed);
                }
                let answer = send(operation.example_with(name, br#""al\u0000ice@example.com""#)).await;
                if name.contains("password") && answer.status.is_success() {
                    // A password may hold any character; it must only be hard to guess.
                    operation.assert_declared(&answer);
                } else {
                    let code = match name.as_str() {
                        "refresh_token" => "invalid_refresh_token",
                        _ => "invalid_credentials",
                    };
                    let refused = [invalid[0], (401, code)];
                    operation.check(&format!("{name}: a NUL"), answer, &refused);
                }
            }
        }

        // Deeply nested.
        for (what, text) in [("arrays", "["), ("objects", "{\"a\":"), ("both", "[{\"a\":")] {
            operation.check(what, send(text.repeat(10_000).into()).await, &either);
        }

        // One byte too large, and as large as allowed.
        let padded = |length: usize| {
            let mut body = br#"{"unexpected":1"#.to_vec();
            body.resize(length - 1, b' ');
            body.push(b'}');
            body
        };
        let large = 64 * 1024 + 1;
        for length in [large, 2 * large] {
            operation.check("a stream", send(padded(length)).await, &[(413, "body_too_large")]);
            let answer = request()
                .header("content-type", "application/json")
                .header("content-length", length.to_string())
                .body(padded(length))
                .send()
                .await;
            operation.check("declared", answer, &[(413, "body_too_large")]);
        }
        let declared_only = request()
            .header("content-type", "application/json")
            .header("content-length", u64::MAX.to_string())
            .send()
            .await;
        operation.check("declared, none sent", declared_only, &[(413, "body_too_large")]);
        operation.check("64 KiB", send(padded(large - 1)).await, &invalid);

        // Another media type, or none.
        let unsupported = [(415, "unsupported_media_type")];
        operation.check("no media type", request().body(good.clone()).send().await, &unsupported);
        operation.check("nothing at all", request().send().await, &unsupported);
        for kind in [
            "",
            "text/plain",
            "text/json",
            "application",
            "application/jsonp",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=json",
            "application/xml+json/x",
            "*/*",
            "json; application/json",
        ] {
            let answer = request().header("content-type", kind).body(good.clone()).send().await;
            operation.check(kind, answer, &unsupported);
        }
    }
}

#[tokio::test]
async fn every_bad_body_is_refused_on_every_route_that_takes_a_form() {
    let invalid = [(400, "invalid_request")];
    let app = App::new().await;
    let client = app.client("orders").await;
    let operations: Vec<_> = operations().into_iter().filter(|operation| operation.form.is_some()).collect();
    assert!(operations.len() >= 2);
    for operation in &operations {
        let request = || operation.request(&app).client(&client);
        let send = async |body: Vec<u8>| request().header("content-type", FORM).body(body).send().await;
        let good = |answer: Answer| {
            assert_eq!(answer.status.as_u16(), 200, "{} {}", operation.path, answer.body);
            operation.assert_declared(&answer);
        };

        for name in operation.required() {
            for body in ["", "&", "=", "x", "{}", &json!({ name: "x" }).to_string(), "\0", "%00=x"] {
                let problem = operation.check(body, send(body.into()).await, &invalid);
                assert!(problem["detail"].as_str().unwrap().contains(name), "{problem}");
            }
            for body in [
                format!("{}=x", name.to_uppercase()),
                format!("{name}[]=x"),
                format!("%20{name}=x"),
                format!("x={name}%3Dx"),
            ] {
                operation.check(&body, send(body.clone().into()).await, &invalid);
            }
        }
        for (name, _) in operation.properties() {
            for more in [
                format!("&{name}=x"),
                format!("&{name}"),
                format!("&%{:02x}{}=", name.as_bytes()[0], &name[1..]),
            ] {
                let problem =
                    operation.check(&more, send(operation.example_form(&more).into()).await, &invalid);
                assert!(problem["detail"].as_str().unwrap().contains(&**name), "{problem}");
            }
        }
        for more in ["%", "%4", "%zz", "%%41", "%u0041", "&%", "&x=%g0", "%\u{e4}\u{e4}"] {
            operation.check(more, send(operation.example_form(more).into()).await, &invalid);
        }
        // Unknown parameters are ignored, and no token contains bytes that are not UTF-8.
        for more in
            ["", "&", "&x=1&x=2", "&client_id=x&client_secret=y", "&=", "&%00=%00", "%ff", "&\u{fffd}"]
        {
            good(send(operation.example_form(more).into()).await);
        }
        good(send([operation.example_form("").as_bytes(), b"\xff\xc3\x28\0"].concat()).await);

        let padded = |length: usize| {
            let mut body = operation.example_form("&x=").into_bytes();
            body.resize(length, b'a');
            body
        };
        let large = 64 * 1024 + 1;
        for length in [large, 2 * large] {
            operation.check("a stream", send(padded(length)).await, &[(413, "body_too_large")]);
            let declared =
                request().header("content-type", FORM).header("content-length", length.to_string());
            operation.check(
                "declared",
                declared.body(padded(length)).send().await,
                &[(413, "body_too_large")],
            );
        }
        good(send(padded(large - 1)).await);
        // About as many parameters as fit.
        good(send(operation.example_form(&"&x".repeat(30_000)).into()).await);

        let unsupported = [(415, "unsupported_media_type")];
        let form = operation.example_form("");
        operation.check("no media type", request().body(form.clone()).send().await, &unsupported);
        for kind in [
            "",
            "application/json",
            "text/plain",
            "application/x-www-form-urlencode",
            "application/x-www-form-urlencoded-not",
            "multipart/form-data; boundary=x",
            "*/*",
        ] {
            let answer = request().header("content-type", kind).body(form.clone()).send().await;
            let problem = operation.check(kind, answer, &unsupported);
            assert!(problem["detail"].as_str().unwrap().contains(FORM), "{problem}");
        }
        for kind in ["application/x-www-form-urlencoded; charset=UTF-8", "APPLICATION/X-WWW-FORM-URLENCODED"]
        {
            good(request().header("content-type", kind).body(form.clone()).send().await);
        }
    }
}

#[tokio::test]
async fn a_body_that_is_declared_too_large_is_refused_on_every_route() {
    let app = App::new().await;
    // Forward auth is asked about requests to other services; tests/forward_auth.rs covers them.
    for operation in operations().iter().filter(|operation| !operation.path.starts_with("/auth/verify")) {
        let answer = operation.request(&app).header("content-length", "65537").send().await;
        operation.check("declared", answer, &[(413, "body_too_large")]);
    }
}

#[tokio::test]
async fn every_bad_query_is_refused_on_every_route_that_takes_parameters() {
    let app = App::new().await;
    let admin = app.login_admin("root").await;
    let client = app.client("orders").await;
    let operations = operations();
    // A proxy may pass on the application's query; tests/forward_auth.rs covers that.
    let with_query = operations.iter().filter(|operation| {
        !operation.query_parameters().is_empty() && !operation.path.starts_with("/auth/verify")
    });
    let mut seen = 0;
    for operation in with_query {
        seen += 1;
        let send = async |query: &str| {
            let address = format!("{}?{query}", operation.address(NOBODY));
            let request = app.request(operation.method.clone(), &address);
            if operation.takes("client") { request.client(&client) } else { request.bearer(&admin) }
                .send()
                .await
        };
        let mut cases = vec![("unexpected=1".to_owned(), "unexpected", "unknown_field")];
        let names = operation.query_parameters();
        for name in &names {
            cases.push((format!("{name}=1&{name}=1"), name, "duplicate_field"));
        }
        let upper = names[0].to_uppercase();
        cases.push((format!("{upper}=1"), &upper, "unknown_field"));
        for (query, field, code) in &cases {
            let problem = operation.check(query, send(query).await, &[(422, "validation_failed")]);
            // An invalid value may be reported before the repetition.
            let found = fault(&problem);
            assert!(found == (field, code) || found == (field, "invalid"), "{query}: {problem}");
        }
        for name in names {
            for value in
                ["", "%00", "%ff", "%", "%zz", "-1", "null", "[]", "'%20OR%201=1--", &"a".repeat(9000)]
            {
                let answer = send(&format!("{name}={value}")).await;
                operation.assert_declared(&answer);
                assert!([200, 204, 422].contains(&answer.status.as_u16()), "{name}={value}: {}", answer.body);
            }
        }
    }
    assert!(seen >= 2, "{seen}");
}

#[tokio::test]
async fn every_other_method_is_refused_with_a_list_of_those_allowed() {
    let app = App::new().await;
    let operations = operations();
    let paths: BTreeSet<_> = operations.iter().map(|operation| &operation.path).collect();
    // Forward auth takes any method; tests/forward_auth.rs covers them.
    for path in paths.into_iter().filter(|path| !path.starts_with("/auth/verify")) {
        let mut allowed = BTreeSet::new();
        for operation in operations.iter().filter(|operation| operation.path == *path) {
            allowed.insert(operation.method.as_str());
            if operation.method == Method::GET {
                allowed.insert("HEAD");
            }
        }
        for method in METHODS
            .map(str::to_uppercase)
            .into_iter()
            .chain(["OPTIONS", "PROPFIND", "get"].map(str::to_owned))
        {
            if allowed.contains(&*method) {
                continue;
            }
            let address = path.replace("{id}", NOBODY);
            let answer = app.request(method.parse().unwrap(), &address).send().await;
            let named: BTreeSet<_> = answer.header("allow").split(',').map(str::trim).collect();
            assert_eq!(named, allowed, "{method} {path}: {}", answer.body);
            assert_eq!(answer.status.as_u16(), 405, "{method} {path}");
            if method != "HEAD" {
                answer.expect_problem(405, "method_not_allowed");
            }
        }
    }
}

#[tokio::test]
async fn a_head_request_is_answered_like_get_without_a_body() {
    let app = App::new().await;
    let admin = app.login_admin("root").await;
    let client = app.client("orders").await;
    for operation in operations().iter().filter(|operation| operation.method == Method::GET) {
        let address = operation.address(admin["user"]["id"].as_str().unwrap());
        let request = |method| {
            let request = app.request(method, &address);
            if operation.takes("client") { request.client(&client) } else { request.bearer(&admin) }
        };
        let get = request(Method::GET).send().await;
        operation.assert_declared(&get);
        assert_eq!(get.status.as_u16(), 200, "{address}: {}", get.body);
        let head = request(Method::HEAD).send().await;
        assert_eq!(head.status, get.status, "{address}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{address}");
        assert_eq!(head.body, "", "{address}");
    }
}

#[tokio::test]
async fn an_unknown_route_is_not_found() {
    let app = App::new().await;
    let admin = app.login_admin("root").await;
    let long = format!("/{}", "a".repeat(10 * 1024));
    for path in [
        "/",
        "/nope",
        "/Users",
        "/users/",
        "/users/me/",
        "/users//me",
        "//users/me",
        "/users/nobody",
        "/users/login/x",
        "/users;a=b",
        "/users%2Fme",
        "/admin",
        "/admin/users/",
        "/healthz/",
        "/openapi.yaml",
        "/%00",
        "/%ff",
        "/%zz",
        "/.env",
        "/docs/",
        "/docs/nope.js",
        "/docs/index.html",
        "/docs/swagger-ui-bundle.js.map",
        "/docs/..%2f..%2fCargo.toml",
        "/docs/%2e%2e%2fapp.env",
        "/docs/../healthz",
        "/docs/%00",
        "/docs/%ff",
        "/docs/%c3%28",
        "/?a=b",
        "/nope?%ff=%00",
        &long,
        &format!("/docs{long}"),
    ] {
        let answer = app.get(path).send().await;
        assert_eq!(answer.status.as_u16(), 404, "{path}: {}", answer.body);
        answer.expect_problem(404, "not_found");
        if !path.starts_with("/docs/") {
            app.post(path).json(&json!({})).bearer(&admin).send().await.expect_problem(404, "not_found");
        }
    }
}

#[tokio::test]
async fn no_token_that_is_not_ours_opens_a_secured_route() {
    let app = App::new().await;
    let alice = app.login_admin("alice").await;
    let access = alice["access_token"].as_str().unwrap().to_owned();
    let issue = |key: &str, issuer: &str, audience: &str, begins: Duration| {
        let key: SymmetricKey = key.parse().unwrap();
        let subject = Subject {
            user_id: alice["user"]["id"].as_str().unwrap().parse().unwrap(),
            session_id: alice["session_id"].as_str().unwrap().parse().unwrap(),
            username: "alice".into(),
            roles: vec!["admin".into()],
        };
        let party = Party { issuer: issuer.into(), audience: audience.into() };
        let now = START + begins;
        let lifetime = Lifetime { now, expires_at: now + Duration::minutes(15) };
        let token = Issuer::new(key, party).issue(subject, Uuid::from_u128(7), lifetime).unwrap();
        format!("Bearer {}", token.expose())
    };
    let other_key = "k4.local.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    let none = Duration::ZERO;
    let ours = issue(KEY, "gatepass", "gatepass", none);

    let missing: Vec<Vec<Vec<u8>>> = vec![
        vec![],
        vec![b"Basic YWxpY2U6c2VjcmV0".to_vec()],
        vec![b"Digest username=\"alice\"".to_vec()],
        vec![format!("Token {access}").into()],
        vec![b"".to_vec()],
        vec![access.clone().into()],
    ];
    let one = |text: String| vec![text.into_bytes()];
    let mut altered = access.clone().into_bytes();
    let last = altered.iter().rposition(|byte| *byte == b'.').unwrap() - 1;
    altered[last] = if altered[last] == b'A' { b'B' } else { b'A' };
    let invalid: Vec<Vec<Vec<u8>>> = vec![
        one("Bearer".into()),
        one("Bearer ".into()),
        one("Bearer garbage".into()),
        one("Bearer null".into()),
        one("Bearer v4.local.".into()),
        one("Bearer v4.local.AAAA".into()),
        one(format!("Bearer {}", access.replace("v4.local.", "v4.public."))),
        one(format!("Bearer {}", access.replace("v4.local.", "v3.local."))),
        one(format!("Bearer {access} {access}")),
        one(format!("Bearer {access},")),
        one(format!("Bearer \"{access}\"")),
        one(format!("Bearer Bearer {access}")),
        one(format!("Bearer {}", String::from_utf8(altered).unwrap())),
        one(format!("Bearer {}", &access[..access.len() - 1])),
        one(format!("Bearer {}", access.rsplit_once('.').unwrap().0)),
        one(format!("Bearer {}", alice["refresh_token"].as_str().unwrap())),
        one(format!("Bearer {KEY}")),
        // {"alg":"none"}
        one("Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.".into()),
        one(format!("Bearer {}", "a".repeat(9 * 1024))),
        one(format!("Bearer v4.local.{}", "A".repeat(9 * 1024))),
        vec!["Bearer åccess".as_bytes().to_vec()],
        vec![b"Bearer \xff\xfe".to_vec()],
        vec![ours.clone().into(), ours.clone().into()],
        vec![ours.clone().into(), b"Basic YWxpY2U6c2VjcmV0".to_vec()],
        one(issue(other_key, "gatepass", "gatepass", none)),
        one(issue(KEY, "https://elsewhere.example", "gatepass", none)),
        one(issue(KEY, "gatepass", "elsewhere", none)),
        one(issue(KEY, "gatepass", "gatepass", Duration::hours(1))),
    ];

    let secured: Vec<_> = operations().into_iter().filter(|operation| operation.takes("bearer")).collect();
    assert!(secured.len() >= 3);
    let send = async |operation: &Operation, fields: &[Vec<u8>]| {
        let mut request = operation.request(&app);
        for field in fields {
            request = request.header("authorization", &field[..]);
        }
        request.json(&Value::Object(operation.example())).send().await
    };
    let mut users = 0;
    for operation in &secured {
        for fields in &missing {
            let answer = send(operation, fields).await;
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            operation.check(&format!("{fields:?}"), answer, &[(401, "missing_token")]);
        }
        for fields in &invalid {
            let what =
                fields.iter().map(|field| String::from_utf8_lossy(field)).collect::<Vec<_>>().join("\n");
            let answer = send(operation, fields).await;
            let challenge = answer.header("www-authenticate").to_owned();
            operation.check(&what, answer, &[(401, "invalid_token")]);
            assert!(challenge.starts_with(r#"Bearer error="invalid_token""#), "{what}: {challenge}");
        }
        // A token in the query or in a cookie does not count.
        let address = format!("{}?access_token={access}", operation.address(NOBODY));
        let request = app.request(operation.method.clone(), &address);
        let answer = request.header("cookie", format!("access_token={access}")).send().await;
        operation.check("query and cookie", answer, &[(401, "missing_token")]);

        // It is the tokens above that are wrong, not the request.
        for scheme in ["Bearer", "bEARER"] {
            // A user of its own, whom the operation may log out or delete.
            users += 1;
            let user = app.login_admin(&format!("user{users}")).await;
            let access = user["access_token"].as_str().unwrap();
            let answer = send(operation, &[format!("{scheme} {access}").into()]).await;
            assert_ne!(answer.status.as_u16(), 401, "{}", answer.body);
            operation.assert_declared(&answer);
        }
    }
    app.clock.advance(Duration::minutes(15));
    for operation in &secured {
        operation.check("too late", send(operation, &one(ours.clone())).await, &[(401, "token_expired")]);
    }
}

#[tokio::test]
async fn only_a_clients_credentials_open_a_route_for_clients() {
    let app = App::new().await;
    let alice = app.login_admin("alice").await;
    let (id, secret) = app.client("orders").await;
    let (other_id, other_secret) = app.client("billing").await;
    let basic = |id: &str, secret: &str| format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
    let ours = basic(&id, &secret);
    let mut altered = secret.clone().into_bytes();
    altered[10] = if altered[10] == b'A' { b'B' } else { b'A' };
    let altered = String::from_utf8(altered).unwrap();

    let one = |text: String| vec![text.into_bytes()];
    // No client credentials at all: a route that is open without credentials is open with these, too.
    let foreign: Vec<Vec<Vec<u8>>> = vec![
        vec![],
        one(String::new()),
        one(ours.replace("Basic ", "")),
        one(ours.replace("Basic ", "Bearer ")),
        one(format!("Bearer {secret}")),
        one(format!("Bearer {}", alice["access_token"].as_str().unwrap())),
        vec![b"Digest username=\"orders\"".to_vec()],
        vec![b"\xff".to_vec()],
    ];
    let wrong: Vec<Vec<Vec<u8>>> = vec![
        one("Basic".into()),
        one("Basic ".into()),
        one("Basic Og==".into()),
        one("Basic not/base64".into()),
        one("Basic ====".into()),
        one(format!("{ours}=")),
        one(format!("{ours} {ours}")),
        one(format!("{ours}, {ours}")),
        one(format!("Basic {id}:{secret}")),
        one(format!("Basic {}", STANDARD.encode(&id))),
        vec![[b"Basic ", STANDARD.encode([id.as_bytes(), b":\xff\xfe"].concat()).as_bytes()].concat()],
        vec![b"Basic \xff\xfe".to_vec()],
        one(basic("", "")),
        one(basic(&id, "")),
        one(basic("", &secret)),
        one(basic(&secret, &id)),
        one(basic(NOBODY, &secret)),
        one(basic("00000000-0000-0000-0000-000000000000", &secret)),
        one(basic("orders", &secret)),
        one(basic("alice", PASSWORD)),
        one(basic(&id, &other_secret)),
        one(basic(&other_id, &secret)),
        one(basic(&id, &altered)),
        one(basic(&id, &secret[..secret.len() - 1])),
        one(basic(&id, &format!("{secret}A"))),
        one(basic(&id, &format!("{secret}\0"))),
        one(basic(&id, &format!(" {secret}"))),
        one(basic(&format!("{id} "), &secret)),
        one(basic(&id.replace('-', ""), &secret)),
        one(basic(&format!("{id}\0"), &secret)),
        one(basic(&id, &secret.to_uppercase())),
        one(basic(&id, alice["access_token"].as_str().unwrap())),
        one(basic(&id, &"a".repeat(8 * 1024))),
        vec![ours.clone().into(), ours.clone().into()],
        vec![ours.clone().into(), b"Bearer abc".to_vec()],
    ];

    let operations: Vec<_> = operations().into_iter().filter(|operation| operation.takes("client")).collect();
    assert!(operations.len() >= 3);
    let mut seen = BTreeSet::new();
    for operation in &operations {
        let send = async |fields: &[Vec<u8>]| {
            let mut request = operation.request(&app);
            for field in fields {
                request = request.header("authorization", &field[..]);
            }
            if operation.form.is_some() {
                request = request.header("content-type", FORM).body(operation.example_form(""));
            }
            request.send().await
        };
        for (fields, is_foreign) in
            foreign.iter().map(|fields| (fields, true)).chain(wrong.iter().map(|fields| (fields, false)))
        {
            let what: Vec<_> = fields.iter().map(|field| String::from_utf8_lossy(field)).collect();
            let answer = send(fields).await;
            if is_foreign && operation.is_open() {
                assert_eq!(answer.status.as_u16(), 200, "{what:?}");
                continue;
            }
            assert_eq!(answer.header("www-authenticate"), r#"Basic realm="gatepass""#, "{what:?}");
            let mut problem = operation.check(&what.join("\n"), answer, &[(401, "invalid_client")]);
            problem["request_id"] = Value::Null;
            seen.insert(problem.to_string());
        }
        // It is the credentials above that are wrong, not the request.
        for good in [ours.clone(), ours.replace("Basic", "bASIC"), ours.replace("Basic", "Basic  ")] {
            assert_eq!(send(&one(good.clone())).await.status.as_u16(), 200, "{good}");
        }
        // Credentials in the query or the form, where OAuth allows them too, do not count.
        let address = format!("{}?client_id={id}&client_secret={secret}", operation.address(NOBODY));
        if !operation.is_open() {
            let answer = app.request(operation.method.clone(), &address).send().await;
            operation.check("query", answer, &[(401, "invalid_client")]);
        }
        let form = format!("{}&client_id={id}&client_secret={secret}", operation.example_form(""));
        let answer = operation.request(&app).header("content-type", FORM).body(form).send().await;
        assert_eq!(answer.status.as_u16(), if operation.is_open() { 200 } else { 401 });
    }
    assert_eq!(seen.len(), 1, "one answer for all: {seen:?}");
}

#[tokio::test]
async fn an_unknown_or_malformed_id_names_nobody() {
    let app = App::new().await;
    let admin = app.login_admin("root").await;
    let operations = operations();
    // Another system's ids may be any text; tests/external_id.rs covers them.
    let is_ours = |path: &str| path.contains("{id}") && !path.contains("/by-external-id/");
    let mut with_id = operations.iter().filter(|operation| is_ours(&operation.path)).peekable();
    assert!(with_id.peek().is_some());
    for operation in with_id {
        for id in [
            NOBODY,
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "abc",
            "1",
            "-1",
            "root",
            "me",
            "null",
            "..",
            "../",
            "..%2f..%2fetc%2fpasswd",
            "%2e%2e",
            "%00",
            "019aa3f0%00",
            "%ff",
            "%c3%28",
            "%ed%a0%80",
            "%zz",
            "%",
            "%20",
            "'%20OR%201=1--",
            "{id}",
            "*",
            "%F0%9F%98%80",
            "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6",
            "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e0",
            "g19aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e",
            &"a".repeat(10 * 1024),
            &"%00".repeat(3 * 1024),
        ] {
            let Ok(address) = operation.address(id).parse::<axum::http::Uri>() else { continue };
            let mut request = app.request(operation.method.clone(), &address.to_string()).bearer(&admin);
            if operation.body.is_some() {
                request = request.json(&Value::Object(operation.example()));
            }
            operation.check(id, request.send().await, &[(404, "not_found")]);
        }
    }
}

fn registration(field: &str, value: &str) -> Value {
    let mut body = json!({
        "username": "alice", "email": "someone@example.com", "password": PASSWORD, "full_name": "Alice Liddell",
    });
    body[field] = value.into();
    body
}

#[tokio::test]
async fn every_field_that_breaks_a_rule_is_named_with_the_rule() {
    let app = App::new().await;
    let (long_name, long_text) = ("a".repeat(65), "ü".repeat(257));
    let long_address = format!("{}@{}.example.com", "a".repeat(64), "b".repeat(190));
    let table: &[(&str, &str, &[&str])] = &[
        ("username", "too_short", &["", "a", "ab", "é", "😀"]),
        ("username", "too_long", &[&long_name, &long_text]),
        (
            "username",
            "invalid_characters",
            &[
                "a b c",
                " alice",
                "alice ",
                "alice\n",
                "al\0ice",
                "ålice",
                "alice@example.com",
                "аlice",
                "al/ice",
                "al'ice",
                "\u{202e}ecila",
                "ａｌｉｃｅ",
            ],
        ),
        ("email", "too_long", &[&long_address]),
        (
            "email",
            "invalid_email",
            &[
                "",
                "alice",
                "@",
                "@example.com",
                "alice@",
                "alice@localhost",
                "alice@[127.0.0.1]",
                "alice@127.0.0.1",
                "alice@exa/mple.com",
                "alice@exam%ple.com",
                "alice@a`|b.com",
                "alice@a_b.com",
                "a@b@example.com",
                "Alice <alice@example.com>",
                "alice@example.com ",
                " alice@example.com",
                "alice@example.com\n",
                "alice@example.com\r\nBcc: all@example.com",
                "al\0ice@example.com",
                "\"a b\"@example.com",
                "alice@exa mple.com",
                "alice@.com",
                "alice@example..com",
                "alice\u{a0}@example.com",
                "alice\u{2028}@example.com",
            ],
        ),
        ("full_name", "too_long", &[&long_text]),
        (
            "full_name",
            "invalid_characters",
            &["a\0b", "a\nb", "a\tb", "a\u{7f}b", "a\u{85}b", "a\u{1b}[31mb"],
        ),
        ("password", "too_short", &["", "1234567", "kV9#xQ2", "ﬁ", "e\u{301}e\u{301}e\u{301}e\u{301}"]),
        ("password", "too_long", &[&long_text]),
        ("password", "too_common", &["password", "qwertyuiop"]),
        ("password", "too_guessable", &["aaaaaaaaaaaaaaaa", "abcabcabcabc"]),
        ("password", "contains_own_data", &["someone@example.com", "AliceLiddell", "liddell1865"]),
    ];
    for (field, code, values) in table {
        for value in *values {
            let answer = app.post("/users").json(&registration(field, value)).send().await;
            assert_eq!(answer.status.as_u16(), 422, "{field} {value:?}: {}", answer.body);
            let problem = answer.expect_problem(422, "validation_failed");
            assert_eq!(fault(&problem), (*field, *code), "{value:?}: {problem}");
        }
    }

    let codes = |problem: &Value| -> Vec<(String, String)> {
        let errors = problem["errors"].as_array().unwrap().iter();
        errors
            .map(|error| (error["field"].as_str().unwrap().into(), error["code"].as_str().unwrap().into()))
            .collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(field, code)| ((*field).into(), (*code).into())).collect()
    };
    let body = json!({"username": "a b", "email": "nowhere", "full_name": "a\0", "password": "x"});
    let problem = app.post("/users").json(&body).send().await.expect_problem(422, "validation_failed");
    let all = [
        ("username", "invalid_characters"),
        ("email", "invalid_email"),
        ("full_name", "invalid_characters"),
        ("password", "too_short"),
    ];
    assert_eq!(codes(&problem), pairs(&all));
    for error in problem["errors"].as_array().unwrap() {
        assert!(!error["message"].as_str().unwrap().is_empty());
    }

    app.register("bob").await;
    let bob = app.login("bob").await;
    let body = json!({"email": "nowhere", "full_name": "a\0"});
    let problem = app.patch("/users/me").bearer(&bob).json(&body).send().await;
    let problem = problem.expect_problem(422, "validation_failed");
    assert_eq!(codes(&problem), pairs(&[("email", "invalid_email"), ("full_name", "invalid_characters")]));
    assert_eq!(app.get("/users/me").bearer(&bob).send().await.expect(200), bob["user"]);
}

#[tokio::test]
async fn values_just_within_the_rules_are_accepted_and_returned() {
    let app = App::new().await;
    let address = format!("{}@{}.{}.{}.com", "a".repeat(64), "b".repeat(63), "c".repeat(63), "d".repeat(57));
    assert_eq!(address.len(), 254);
    // Characters that nobody would guess, among them some of two, three and four bytes.
    let long_password: String = (0u32..256)
        .map(|i| char::from_u32([0x21, 0xe0, 0x4e00, 0x1f600][i as usize % 4] + i * 7 % 60).unwrap())
        .collect();
    assert_eq!(long_password.chars().count(), 256);
    let table = [
        ("username", "xyz"),
        ("username", "..."),
        ("username", "A.b_c-9"),
        ("username", &"x".repeat(64)),
        ("email", &address),
        ("email", "x@b.co"),
        ("email", "Someone.Else+tag@Example.COM"),
        ("email", "ü@exämple.de"),
        ("email", "o'hara@mail.example"),
        ("full_name", "é"),
        ("full_name", &"é".repeat(256)),
        ("full_name", &"😀".repeat(256)),
        ("full_name", "👩‍👩‍👧‍👦 山田太郎 O'Neil; DROP TABLE users;-- \\ \"<script>"),
        ("password", "kV9#xQ2w"),
        ("password", "жёщъ7эфъ"),
        ("password", "🦊🚲🍉🎻🧊🪁🥁🦔"),
        ("password", "tram lamp \0 fjord igloo"),
        ("password", &long_password),
    ];
    for (i, (field, value)) in table.into_iter().enumerate() {
        let mut body = json!({
            "username": format!("user{i}"), "email": format!("{i}@example.com"), "password": PASSWORD,
        });
        body[field] = value.into();
        let answer = app.post("/users").json(&body).send().await;
        assert_eq!(answer.status.as_u16(), 201, "{field} {value:?}: {}", answer.body);
        let user = answer.expect(201);
        for field in ["username", "email", "full_name"] {
            assert_eq!(user[field], body[field], "{body}");
        }
        for name in ["username", "email"] {
            let [name, password] = [name, "password"].map(|field| body[field].as_str().unwrap());
            assert_eq!(app.try_login(name, password).await.expect(200)["user"], user);
        }
    }
}

#[tokio::test]
async fn a_full_name_is_trimmed_and_a_blank_one_counts_as_none() {
    let app = App::new().await;
    for (i, (name, kept)) in
        [("  Ada Lovelace ", json!("Ada Lovelace")), ("", Value::Null), (" \u{a0}\u{3000}", Value::Null)]
            .iter()
            .enumerate()
    {
        let body = json!({
            "username": format!("user{i}"), "email": format!("{i}@example.com"), "password": PASSWORD, "full_name": name,
        });
        assert_eq!(app.post("/users").json(&body).send().await.expect(201)["full_name"], *kept);
    }
}

#[test]
fn what_passes_the_rules_never_breaks_a_constraint() {
    let texts = |good: &'static str| prop_oneof![3 => good.prop_map(String::from), 1 => "\\PC{0,80}", 1 => any::<String>()];
    let username = texts("[a-zA-Z0-9_.-]{3,64}");
    let email = prop_oneof![
        2 => "[a-z.+İßſKÅ]{1,12}@[a-zİßſKÅ-]{1,12}\\.[a-z]{1,5}",
        1 => "\\PC{1,12}@\\PC{1,12}\\.\\PC{1,5}",
        1 => "[a-z]{1,64}@([a-zé]{1,63}\\.){1,4}[a-zé]{2,60}",
        1 => "[a-z!#$%&'*+/=?^_`{|}~]{1,8}@[a-z0-9]([a-z.]|[!#$%&'*+/=?^_`{|}~-])[a-z0-9]\\.([a-z]{2}|[0-9]{1,3})",
        1 => any::<String>(),
    ];
    let full_name = proptest::option::of(prop_oneof![
        "\\PC{0,300}",
        any::<String>(),
        "[\\s\u{200b}\u{2028}\u{feff}\u{ad}\u{85}]{0,3}\\PC{0,4}[\\s\u{feff}]{0,3}",
    ]);
    let password = prop_oneof![2 => "\\PC{8,40}", 1 => any::<String>(), 1 => "\\PC{250,260}"];

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let app = runtime.block_on(App::new());
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let count = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&(username, email, full_name, password), |(username, email, full_name, password)| {
            runtime.block_on(async {
                let mut body = json!({"username": username, "email": email, "password": password});
                if let Some(full_name) = full_name {
                    body["full_name"] = full_name.into();
                }
                let answer = app.post("/users").json(&body).send().await;
                let status = answer.status.as_u16();
                prop_assert!([201, 409, 422].contains(&status), "{}", answer.body);
                if status == 201 {
                    count.set(count.get() + 1);
                    let domain = email.rsplit('@').next().unwrap_or_default();
                    let can_be = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-.".contains(c);
                    prop_assert!(domain.chars().all(can_be), "{}", email);
                    let last = domain.rsplit('.').next().unwrap_or_default();
                    prop_assert!(last.contains(|c: char| !c.is_numeric()), "{}", email);
                    // The same password logs in with the username and with the address.
                    for name in [&username, &email] {
                        let login = app.try_login(name, &password).await;
                        prop_assert_eq!(login.status.as_u16(), 200, "{}", login.body);
                    }
                }
                Ok::<_, TestCaseError>(())
            })
        })
        .unwrap();
    assert!(count.get() > 10, "only {} of 200 were registered", count.get());
}
