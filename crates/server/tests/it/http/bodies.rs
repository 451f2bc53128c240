//! Bodies in every dress that clients put them in.

use std::io::Write;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use server::http::HttpLimits;

use super::api::{API_KEY, Answer, Api};

const LIMIT: usize = 4_096;

async fn start() -> Api {
    Api::build(false, HttpLimits { body_bytes: LIMIT, body_pause_ms: 50, ..HttpLimits::default() }).await
}

async fn post(api: &Api, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let mut request = Request::builder().method("POST").uri("/v1/agents").header("x-api-key", API_KEY);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(api.send(request.body(body.into()).unwrap()).await).await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn media_types_and_encodings_are_taken_leniently() {
    let api = start().await;
    let agent = json!({"name": "a", "model": "demo"}).to_string();
    for headers in [
        [].as_slice(),
        &[("content-type", "text/plain")],
        &[("content-type", "application/json; charset=UTF-8")],
        &[("content-encoding", "identity")],
    ] {
        post(&api, headers, agent.clone()).await.ok();
    }
    post(&api, &[("content-encoding", "gzip")], gzip(agent.as_bytes())).await.ok();
    let twice = post(&api, &[], r#"{"name": "a", "name": "b", "model": "demo"}"#).await;
    assert!(twice.invalid().contains("twice"));
}

#[tokio::test]
async fn bad_encodings_have_codes() {
    let api = start().await;
    let latin = post(&api, &[("content-type", "application/json; charset=latin1")], "{}").await;
    latin.invalid();
    assert_eq!(latin.code(), "unsupported_charset");
    let brotli = post(&api, &[("content-encoding", "br")], "{}").await;
    brotli.invalid();
    assert_eq!(brotli.code(), "request_body_encoding_unsupported");
    let plain = post(&api, &[("content-encoding", "gzip")], "{}").await;
    plain.invalid();
    assert_eq!(plain.code(), "request_body_encoding_invalid");
    let bomb = post(&api, &[("content-encoding", "gzip")], gzip(&vec![b' '; 1 << 20])).await;
    bomb.error(413, "request_too_large");
    assert_eq!(bomb.code(), "request_body_too_large_after_decoding");
}

#[tokio::test]
async fn large_slow_and_broken_bodies_are_refused() {
    let api = start().await;
    post(&api, &[], vec![b' '; LIMIT + 1]).await.error(413, "request_too_large");
    let chunks = (0..10).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1_000])));
    post(&api, &[], Body::from_stream(futures::stream::iter(chunks))).await.error(413, "request_too_large");
    let slow = post(&api, &[], Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>())).await;
    slow.invalid();
    assert_eq!(slow.code(), "request_body_timeout");
    let cut = futures::stream::iter([Err::<Bytes, _>(std::io::Error::other("cut"))]);
    post(&api, &[], Body::from_stream(cut)).await.invalid();
    assert_eq!(post(&api, &[], "").await.status, StatusCode::BAD_REQUEST);
}
