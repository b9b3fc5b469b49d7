//! The API's description: checked in, and the same as the server's.

use std::path::PathBuf;

/// Set to any value, this writes the document instead of comparing it.
const WRITE: &str = "PRAAS_OPENAPI_WRITE";

fn document() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json")
}

#[test]
fn the_checked_in_description_is_the_servers() {
    let now = praas_control::openapi_json();
    let path = document();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &now).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == now,
        "docs/openapi.json is not what the server says of itself. If the change is meant, write \
         it anew:\n    {WRITE}=1 cargo test -p praas-control --test control openapi\nand say in \
         the changelog what clients will notice."
    );
}

#[test]
fn every_operation_says_who_may_and_how_it_fails() {
    let document: serde_json::Value = serde_json::from_str(&praas_control::openapi_json()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.values().flat_map(|path| path.as_object().unwrap());
    let mut count = 0;
    for (method, operation) in operations {
        let id = operation["operationId"].as_str().unwrap();
        count += 1;
        if id == "openapi" {
            continue;
        }
        let refusal = &operation["responses"]["default"]["content"]["application/problem+json"];
        let schema = refusal["schema"]["$ref"].as_str();
        assert_eq!(
            schema,
            Some("#/components/schemas/Problem"),
            "{method} {id}"
        );
    }
    assert_eq!(count, 27, "a route is not described, or this number is old");
    assert_eq!(document["security"][0]["bearer"], serde_json::json!([]));
}
