//! Takes in what a handler left of a request's body.
//!
//! A refusal often comes before the body was read: wrong method, no credential, unknown path. hyper then closes the
//! connection, and a client that already sends its next request there sees it die. So a small rest is read and thrown
//! away before the answer leaves; a large one is not worth the wait.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;

const REST_BYTES_MAX: usize = 256 * 1024;
const PATIENCE: Duration = Duration::from_millis(250);

/// The body of a request that is being handled.
pub(super) struct Rest(Option<Arc<Mutex<Body>>>);

/// Lends the request's body to its handler.
pub(super) fn lend(request: Request) -> (Request, Rest) {
    // A client that waits to be told to go on has sent nothing yet.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return (request, Rest(None));
    }
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    let lent = Body::new(Lent(Arc::clone(&body)));
    (Request::from_parts(parts, lent), Rest(Some(body)))
}

impl Rest {
    /// Reads on until the end, or until it is too much.
    pub(super) async fn discard(self) {
        let Some(body) = self.0 else { return };
        if body.lock().is_end_stream() {
            return;
        }
        let mut body = Lent(body);
        let read = async {
            let mut bytes = 0;
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > REST_BYTES_MAX {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, read).await;
    }
}

struct Lent(Arc<Mutex<Body>>);

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}
