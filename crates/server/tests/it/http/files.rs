//! The Files API.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::api::{API_KEY, Answer, Api, Text as _};

const BOUNDARY: &str = "frontier";

/// A part as HTTP clients write it.
fn part(name: &str, more: &str, content: &[u8]) -> Vec<u8> {
    let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{more}\r\n\r\n");
    [head.as_bytes(), content, b"\r\n"].concat()
}

fn file_part(filename: &str, content: &[u8]) -> Vec<u8> {
    part("file", &format!("; filename=\"{filename}\"\r\ncontent-type: text/csv"), content)
}

async fn post(api: &Api, key: &str, parts: &[Vec<u8>]) -> Answer {
    send(api, BOUNDARY, &[("x-api-key", key)], parts).await
}

/// An upload under an idempotency key. Clients draw a boundary for every try.
async fn post_once(api: &Api, key: &str, boundary: &str, parts: &[Vec<u8>]) -> Answer {
    send(api, boundary, &[("x-api-key", API_KEY), ("idempotency-key", key)], parts).await
}

async fn send(api: &Api, boundary: &str, headers: &[(&str, &str)], parts: &[Vec<u8>]) -> Answer {
    let mut body = parts.concat();
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    if boundary != BOUNDARY {
        body = String::from_utf8(body).unwrap().replace(BOUNDARY, boundary).into_bytes();
    }
    let mut request = Request::builder()
        .method(Method::POST)
        .uri("/v1/files")
        .header("content-type", format!("multipart/form-data; boundary={boundary}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(api.send(request.body(Body::from(body)).unwrap()).await).await
}

pub(super) async fn upload(api: &Api, filename: &str, content: &[u8]) -> Value {
    post(api, API_KEY, &[file_part(filename, content)]).await.ok()
}

#[tokio::test]
async fn a_file_comes_back_as_it_was_sent() {
    let api = Api::start_without_replica().await;
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let file = upload(&api, "Zahlen \u{fc}.csv", &content).await;
    let id = file["id"].text();
    assert!(id.starts_with("file_"), "{id}");
    assert_eq!(file["type"], "file");
    assert_eq!(file["filename"], "Zahlen \u{fc}.csv");
    assert_eq!((&file["mime_type"], &file["size_bytes"]), (&json!("text/csv"), &json!(1_200_000)));
    assert_eq!(
        (&file["downloadable"], &file["scope"], &file["expires_at"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    assert_eq!(api.get(&format!("/v1/files/{id}")).await.ok(), file);

    let request = Request::builder().uri(format!("/v1/files/{id}/content")).header("x-api-key", API_KEY);
    let response = api.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/csv");
    assert_eq!(response.headers()["content-length"], "1200000");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    assert_eq!(response.headers()["content-disposition"], "attachment; filename*=UTF-8''Zahlen%20%C3%BC.csv");
    assert!(response.into_body().collect().await.unwrap().to_bytes() == content);

    let deleted = api.delete(&format!("/v1/files/{id}")).await.ok();
    assert_eq!(deleted, json!({"id": id, "type": "file_deleted"}));
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        api.get(&path).await.error(404, "not_found_error");
    }
    api.delete(&format!("/v1/files/{id}")).await.error(404, "not_found_error");
}

#[tokio::test]
async fn names_and_lifetimes_are_checked() {
    let api = Api::start_without_replica().await;
    assert_eq!(upload(&api, "../../etc/passwd", b"x").await["filename"], "passwd");
    assert_eq!(upload(&api, "", b"").await["filename"], "unnamed.csv");
    let lasting = |seconds: &str| [file_part("a", b"x"), part("expires_in_seconds", "", seconds.as_bytes())];
    let file = post(&api, API_KEY, &lasting("3600")).await.ok();
    assert!(file["expires_at"].text() > file["created_at"].text());
    for seconds in ["3599", "7776001", "soon", "", "-1", "36000000000000000000000"] {
        let refused = post(&api, API_KEY, &lasting(seconds)).await.invalid();
        assert!(refused.starts_with("expires_in_seconds: "), "{refused}");
    }
}

#[tokio::test]
async fn an_upload_that_is_sent_again_makes_one_file() {
    let api = Api::start_without_replica().await;
    let is_replayed = |answer: &Answer| answer.headers.contains_key("idempotent-replayed");
    let lasting = |seconds: &str| [file_part("a.csv", b"a,b"), part("expires_in_seconds", "", seconds.as_bytes())];
    post_once(&api, "k", "first", &lasting("1")).await.invalid();
    let first = post_once(&api, "k", "second", &lasting("3600")).await;
    assert!(!is_replayed(&first), "a refusal is not kept");
    let first = first.ok();
    let mut turned = lasting("3600");
    turned.reverse();
    for (boundary, parts) in [("third", lasting("3600")), ("fourth", turned)] {
        let again = post_once(&api, "k", boundary, &parts).await;
        assert!(is_replayed(&again));
        assert_eq!(again.ok(), first);
    }
    let typed = part("file", "; filename=\"a.csv\"\r\ncontent-type: text/plain", b"a,b");
    for parts in [
        vec![file_part("a.csv", b"a,b")],
        lasting("3601").to_vec(),
        vec![file_part("b.csv", b"a,b"), lasting("3600")[1].clone()],
        vec![file_part("a.csv", b"a;b"), lasting("3600")[1].clone()],
        vec![typed, lasting("3600")[1].clone()],
    ] {
        let refused = post_once(&api, "k", "fifth", &parts).await;
        assert!(refused.error(409, "conflict_error").contains("another body"));
        assert_eq!(refused.code(), "idempotency_key_reused");
    }
    assert_eq!(api.get("/v1/files").await.ok()["data"], json!([first]));

    let parts = [file_part("twin", b"x")];
    let twins = ["a", "b", "c", "d"].map(|boundary| post_once(&api, "twins", boundary, &parts));
    let answers = futures::future::join_all(twins).await;
    assert_eq!(answers.iter().filter(|answer| !is_replayed(answer)).count(), 1);
    let files: Vec<Value> = answers.into_iter().map(Answer::ok).collect();
    assert!(files.iter().all(|file| *file == files[0]), "{files:?}");
    assert_eq!(api.get("/v1/files").await.ok()["data"].as_array().unwrap().len(), 2);

    let fresh = [upload(&api, "twin", b"x").await, upload(&api, "twin", b"x").await];
    assert_ne!(fresh[0]["id"], fresh[1]["id"]);
}

#[tokio::test]
async fn a_broken_upload_is_refused_by_name() {
    let api = Api::start_without_replica().await;
    let file = || file_part("a", b"x");
    for (parts, named) in [
        (vec![], "file: required"),
        (vec![part("purpose", "", b"x"), file()], "purpose: unknown field"),
        (vec![file(), file()], "file: given more than once"),
    ] {
        let refused = post(&api, API_KEY, &parts).await.invalid();
        assert!(refused.starts_with(named), "{refused}");
    }
    let request = |kind: &str, body: &'static str| {
        let request = Request::builder().method(Method::POST).uri("/v1/files").header("x-api-key", API_KEY);
        request.header("content-type", kind).body(Body::from(body)).unwrap()
    };
    for (kind, body) in [
        ("application/json", "{}"),
        ("multipart/form-data", "--x"),
        ("multipart/form-data; boundary=x", "--x\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\ncut of"),
    ] {
        Answer::of(api.send(request(kind, body)).await).await.invalid();
    }
    let large = Request::builder().method(Method::POST).uri("/v1/files").header("x-api-key", API_KEY);
    let large = large.header("content-length", "600000000").header("content-type", "multipart/form-data; boundary=x");
    let refused = Answer::of(api.send(large.body(Body::empty()).unwrap()).await).await;
    refused.error(413, "request_too_large");
    assert_eq!(api.get("/v1/files").await.ok()["data"], json!([]), "nothing of it was kept");
}

#[tokio::test]
async fn files_are_paged_in_both_ways() {
    let api = Api::start_without_replica().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.insert(0, upload(&api, &format!("{number}.csv"), b"x").await["id"].text());
    }
    let of = |page: &Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|file| file["id"].text()).collect()
    };
    let first = api.get("/v1/files?limit=2").await.ok();
    assert_eq!(of(&first), ids[..2]);
    assert_eq!(
        (&first["has_more"], &first["first_id"], &first["last_id"]),
        (&json!(true), &json!(ids[0]), &json!(ids[1]))
    );
    let next = first["next_page"].text();
    assert!(next.starts_with("page_"), "{next}");
    let second = api.get(&format!("/v1/files?limit=3&page={next}")).await.ok();
    assert_eq!(
        (of(&second), &second["next_page"], &second["has_more"]),
        (ids[2..].to_vec(), &Value::Null, &json!(false))
    );

    let after = api.get(&format!("/v1/files?limit=2&after_id={}", ids[1])).await.ok();
    assert_eq!((of(&after), &after["has_more"]), (ids[2..4].to_vec(), &json!(true)));
    let before = api.get(&format!("/v1/files?limit=2&before_id={}", ids[4])).await.ok();
    assert_eq!((of(&before), &before["has_more"]), (ids[2..4].to_vec(), &json!(true)));

    let named = api.get(&format!("/v1/files?ids[]={}&ids[]=file_none&ids[]={0}&ids[]={}", ids[3], ids[0])).await.ok();
    assert_eq!((of(&named), &named["next_page"]), (vec![ids[3].clone(), ids[0].clone()], &Value::Null));
    assert_eq!(api.get("/v1/files?scope_id=sesn_none").await.ok()["data"], json!([]));
    for (query, named) in [
        (format!("ids[]={}&limit=2", ids[0]), "ids: "),
        ("limit=0".to_owned(), "limit: "),
        ("limit=1001".to_owned(), "limit: "),
        ("page=page_nonsense".to_owned(), "page: "),
        ("after_id=file_none".to_owned(), "after_id"),
        (format!("after_id={}&before_id={0}", ids[0]), "page, after_id, before_id"),
        ("scope_id=agent_1".to_owned(), "scope_id: "),
        ("order=asc".to_owned(), "order: "),
    ] {
        let refused = api.get(&format!("/v1/files?{query}")).await.invalid();
        assert!(refused.starts_with(named), "{query}: {refused}");
    }
}

#[tokio::test]
async fn expired_content_says_so() {
    let api = Api::start_without_replica().await;
    let parts = [file_part("a.csv", b"x"), part("expires_in_seconds", "", b"3600")];
    let id = post(&api, API_KEY, &parts).await.ok()["id"].text();
    let later = api.world.clock.now().plus_millis(3_700_000);
    assert_eq!(api.world.files.expire_files(later, 10).await.unwrap(), 1);
    let refused = api.get(&format!("/v1/files/{id}/content")).await;
    refused.error(404, "not_found_error");
    assert_eq!(refused.code(), "file_expired");
    assert_eq!(api.get(&format!("/v1/files/{id}")).await.ok()["filename"], "a.csv");
}

#[tokio::test]
async fn only_an_application_has_files() {
    let api = Api::start_without_replica().await;
    let environment = api.environment("self_hosted").await;
    let key = api.environment_key(&environment).await;
    let id = upload(&api, "a.csv", b"x").await["id"].text();
    post(&api, &key, &[file_part("b", b"x")]).await.error(403, "permission_error");
    for path in ["/v1/files".to_owned(), format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        api.call_as(&key, Method::GET, &path, None).await.error(403, "permission_error");
        api.call_as("sk-unknown", Method::GET, &path, None).await.error(401, "authentication_error");
    }
    api.call_as(&key, Method::DELETE, &format!("/v1/files/{id}"), None).await.error(403, "permission_error");
}

#[tokio::test]
async fn without_a_place_for_them_files_are_refused() {
    let api = Api::start_without_replica().await.without_blobs();
    for refused in [api.get("/v1/files").await, post(&api, API_KEY, &[file_part("a", b"x")]).await] {
        assert!(refused.error(501, "api_error").contains("OBJECT_STORE_URL"));
    }
}
