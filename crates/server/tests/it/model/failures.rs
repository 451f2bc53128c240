//! Failures on the way: what is tried again, what is told, and what is given up.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use session::event::SessionErrorKind;
use tokio::net::TcpListener;

use super::*;

/// Kind, whether it may pass, and the provider's wish.
fn told(answer: Result<ModelAnswer, ModelError>) -> (SessionErrorKind, bool, Option<u64>) {
    let error = answer.unwrap_err();
    assert!(!format!("{error:?}").contains(KEY) && !error.message.contains("127.0.0.1"), "{error:?}");
    (error.kind, error.retryable, error.retry_after_ms)
}

#[tokio::test]
async fn what_passes_is_tried_again_within_the_call() {
    for kind in BOTH {
        for fields in [
            json!({"status": 429, "headers": [["retry-after-ms", "1"]]}),
            json!({"status": 529}),
            json!({"status": 500}),
            json!({"cut_after_bytes": 0}),
        ] {
            let (answer, recorder, provider) = play(kind, vec![reply(fields.clone())]).await;
            assert!(answer.is_ok(), "{kind:?} {fields}: {answer:?}");
            assert_eq!(recorder.text(), "all is well");
            assert_eq!(provider.received().len(), 2);
        }
    }
}

#[tokio::test]
async fn what_is_known_to_cost_nothing_is_told() {
    for kind in BOTH {
        for (replies, is_free) in [
            (vec![json!({"status": 400})], true),
            (vec![json!({"status": 401})], true),
            (vec![json!({"status": 429}), json!({"status": 529})], true),
            // Of a gateway's own error, and of a connection that breaks, nobody knows.
            (vec![json!({"status": 502}), json!({"status": 429})], false),
            (vec![json!({"status": 429}), json!({"status": 500})], false),
            (vec![json!({"cut_after_bytes": 0}), json!({"status": 400})], false),
            (vec![json!({"cut_after_bytes": 100})], false),
        ] {
            let (answer, ..) = play(kind, replies.iter().cloned().map(reply).collect()).await;
            assert_eq!(answer.unwrap_err().is_free, is_free, "{kind:?} {replies:?}");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut entry = ModelSettings::new(kind);
        entry.base_url = Some(format!("http://{}", nobody.local_addr().unwrap()));
        entry.api_key = Some(Secret::new(KEY));
        drop(nobody);
        assert!(ask(&router([("main", entry)])).await.0.unwrap_err().is_free, "nobody got the request");
    }
}

#[tokio::test]
async fn every_request_that_is_sent_again_is_told() {
    let full = || reply(json!({"status": 529}));
    let provider = ScriptedProvider::start(vec![full(), full(), reply(json!({"status": 500}))]).await;
    let mut entry = settings(ProviderKind::Anthropic, &provider);
    entry.patience.attempts_max = 3;
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    let router = router([("main", entry)]).telling(move |provider, reason| {
        let _ = sender.send((provider, reason));
    });
    assert!(ask(&router).await.0.is_err());
    drop(router);
    let overloaded = (ProviderKind::Anthropic, SessionErrorKind::ModelOverloaded);
    assert_eq!([told.recv().await, told.recv().await, told.recv().await], [Some(overloaded), Some(overloaded), None]);
}

#[tokio::test]
async fn what_lasts_is_told_in_the_words_of_the_api() {
    use SessionErrorKind::*;
    for kind in BOTH {
        for (fields, requests, expected) in [
            (json!({"status": 429, "headers": [["retry-after", "30"]]}), 1, (ModelRateLimited, true, Some(30_000))),
            (json!({"status": 429}), 2, (ModelRateLimited, true, None)),
            (json!({"status": 529}), 2, (ModelOverloaded, true, None)),
            (json!({"status": 503}), 2, (ModelOverloaded, true, None)),
            (json!({"status": 500}), 2, (ModelRequestFailed, true, None)),
            (json!({"status": 400}), 1, (ModelRequestFailed, false, None)),
            (json!({"status": 404}), 1, (ModelRequestFailed, false, None)),
            (json!({"status": 413}), 1, (ModelRequestFailed, false, None)),
            (json!({"status": 401, "error_message": KEY}), 1, (ModelRequestFailed, false, None)),
            (json!({"status": 400, "error_message": format!("bad {KEY}")}), 1, (ModelRequestFailed, false, None)),
            (json!({"status": 402}), 1, (Billing, false, None)),
            (json!({"status": 307, "headers": [["location", "/v1/messages"]]}), 1, (ModelRequestFailed, false, None)),
        ] {
            let twice = reply(fields.clone());
            let (answer, recorder, provider) = play(kind, vec![twice.clone(), twice]).await;
            assert_eq!(told(answer), expected, "{kind:?} {fields}");
            assert!(recorder.0.is_empty());
            assert_eq!(provider.received().len(), requests, "{kind:?} {fields}");
        }
    }
}

#[tokio::test]
async fn a_cut_in_the_middle_is_not_tried_again_here() {
    for kind in BOTH {
        let (answer, _, provider) = play(kind, vec![reply(json!({"piece_bytes": 40, "cut_after_bytes": 600}))]).await;
        assert_eq!(told(answer), (SessionErrorKind::ModelRequestFailed, true, None), "{kind:?}");
        assert_eq!(provider.received().len(), 1);
    }
}

#[tokio::test]
async fn what_a_cut_answer_used_is_told() {
    let script = vec![reply(json!({"error_event": "overloaded_error"}))];
    let (answer, recorder, _) = play(ProviderKind::Anthropic, script).await;
    let error = answer.unwrap_err();
    assert_eq!((error.kind, error.retryable), (SessionErrorKind::ModelOverloaded, true));
    assert_eq!((error.usage.input_tokens, error.usage.output_tokens), (7, 1));
    assert_eq!(recorder.text(), "all is well");
}

#[tokio::test]
async fn an_error_in_the_stream_is_classified() {
    let script = vec![reply(json!({"error_event": "rate_limit_error"}))];
    let (answer, ..) = play(ProviderKind::Openai, script).await;
    assert_eq!(told(answer), (SessionErrorKind::ModelRateLimited, true, None));
}

#[tokio::test]
async fn garbage_is_not_an_answer() {
    for kind in BOTH {
        for (fields, retryable) in [
            (json!({"raw": "data: {\"type\": \n\ndata: }\n\n"}), true),
            (json!({"raw": "data: \u{0}\n\n"}), true),
            (json!({"raw": "an answer without a stream"}), true),
            (json!({"raw": "<html>", "content_type": "text/html"}), false),
        ] {
            let (answer, ..) = play(kind, vec![reply(fields.clone())]).await;
            assert_eq!(told(answer), (SessionErrorKind::ModelRequestFailed, retryable, None), "{kind:?} {fields}");
        }
    }
}

/// As llama-cpp-python does: it serves one request at a time and drops the older one.
#[tokio::test]
async fn an_answer_given_up_politely_is_not_an_answer() {
    let chunk = json!({"choices": [{"delta": {"content": "Once upon"}, "finish_reason": null}]});
    let given_up = reply(json!({"raw": format!("data: {chunk}\n\ndata: [DONE]\n\n")}));
    let (answer, recorder, _) = play(ProviderKind::Openai, vec![given_up]).await;
    assert_eq!(told(answer), (SessionErrorKind::ModelRequestFailed, true, None));
    assert_eq!(recorder.text(), "Once upon");
}

/// As llama-cpp-python does when a request is larger than its context: a good head and then nothing.
#[tokio::test]
async fn a_head_without_a_body_is_not_an_answer() {
    let empty = || reply(json!({"cut_after_bytes": 0}));
    let (answer, ..) = play(ProviderKind::Openai, vec![empty(), empty()]).await;
    assert_eq!(told(answer), (SessionErrorKind::ModelRequestFailed, true, None));
}

#[tokio::test]
async fn silence_ends_by_the_time_limits() {
    for kind in BOTH {
        // never a byte; a few bytes and no more; bytes forever
        for (fields, limit) in [
            (json!({"delay_ms": 600_000}), "first"),
            (json!({"cut_after_bytes": 200, "hang": true}), "idle"),
            (json!({"words": vec!["x"; 1000], "piece_bytes": 1, "piece_delay_ms": 50}), "total"),
        ] {
            let provider = ScriptedProvider::start(vec![reply(fields.clone())]).await;
            let mut entry = settings(kind, &provider);
            let patience = &mut entry.patience;
            let short = TimeSpan::from_millis(150);
            match limit {
                "first" => patience.first_byte_timeout = short,
                "idle" => patience.idle_timeout = short,
                _ => patience.total_timeout = short,
            }
            let (answer, _) = ask(&router([("main", entry)])).await;
            assert_eq!(told(answer), (SessionErrorKind::ModelRequestFailed, true, None), "{kind:?} {limit}");
            assert_eq!(provider.received().len(), 1, "waiting once is enough: {kind:?} {limit}");
        }
    }
}

#[tokio::test]
async fn a_stream_left_open_after_the_answer_costs_nothing() {
    for kind in BOTH {
        let script = vec![reply(json!({"without_end": true, "without_usage": true, "hang": true}))];
        let (answer, ..) = play(kind, script).await;
        assert!(answer.is_ok(), "{kind:?}");
    }
}

#[tokio::test]
async fn nobody_listening_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for kind in BOTH {
        let mut entry = ModelSettings::new(kind);
        entry.base_url = Some(format!("http://{address}"));
        let (answer, _) = ask(&router([("main", entry)])).await;
        let error = answer.as_ref().unwrap_err();
        assert_eq!(error.message, "the model provider cannot be reached");
        assert_eq!(told(answer), (SessionErrorKind::ModelRequestFailed, true, None));
    }
}

#[tokio::test]
async fn dropping_the_call_aborts_the_request() {
    for kind in BOTH {
        let provider = ScriptedProvider::start(vec![reply(json!({"cut_after_bytes": 500, "hang": true}))]).await;
        let router = router([("main", settings(kind, &provider))]);
        let (sender, mut previewed) = tokio::sync::mpsc::unbounded_channel();
        struct Forward(tokio::sync::mpsc::UnboundedSender<PreviewDelta>);
        impl PreviewSink for Forward {
            fn preview(&mut self, delta: PreviewDelta) {
                let _ = self.0.send(delta);
            }
        }
        let mut sink = Forward(sender);
        {
            let mut call = pin!(router.answer(request(), &mut sink));
            let first = poll_fn(|context| match call.as_mut().poll(context) {
                Poll::Ready(answer) => panic!("{answer:?}"),
                Poll::Pending => previewed.poll_recv(context),
            });
            assert_eq!(first.await, Some(PreviewDelta::MessageStart));
        }
        provider.abandoned().await;
    }
}

#[tokio::test]
async fn fallbacks_are_asked_while_nothing_was_answered() {
    let full = || reply(json!({"status": 529}));
    let down = ScriptedProvider::start(vec![full(), full()]).await;
    let spare = ScriptedProvider::start(vec![]).await;
    let mut main = settings(ProviderKind::Anthropic, &down);
    main.fallbacks = vec!["spare".into()];
    let mut other = settings(ProviderKind::Openai, &spare);
    other.fallbacks = vec!["main".into()];
    let router = router([("main", main), ("spare", other)]);
    let (answer, recorder) = ask(&router).await;
    assert!(answer.is_ok());
    assert_eq!(recorder.text(), "all is well");
    assert_eq!((down.received().len(), spare.received().len()), (2, 1));
    assert_eq!(spare.received()[0].body["model"], "spare");
}

#[tokio::test]
async fn fallbacks_are_not_asked_otherwise() {
    for fields in [json!({"status": 400}), json!({"cut_after_bytes": 600}), json!({"error_event": "overloaded_error"})]
    {
        let main = ScriptedProvider::start(vec![reply(fields.clone())]).await;
        let spare = ScriptedProvider::start(vec![]).await;
        let mut entry = settings(ProviderKind::Anthropic, &main);
        entry.fallbacks = vec!["spare".into()];
        let (answer, _) = ask(&router([("main", entry), ("spare", settings(ProviderKind::Openai, &spare))])).await;
        assert!(answer.is_err(), "{fields}");
        assert_eq!(spare.received().len(), 0, "{fields}");
    }
}

#[tokio::test]
async fn when_all_fail_the_first_failure_counts() {
    let limited = || reply(json!({"status": 429, "headers": [["retry-after", "60"]]}));
    let main = ScriptedProvider::start(vec![limited()]).await;
    let spare = ScriptedProvider::start(vec![reply(json!({"status": 400}))]).await;
    let mut entry = settings(ProviderKind::Anthropic, &main);
    entry.fallbacks = vec!["spare".into()];
    let (answer, _) = ask(&router([("main", entry), ("spare", settings(ProviderKind::Openai, &spare))])).await;
    assert_eq!(told(answer), (SessionErrorKind::ModelRateLimited, true, Some(60_000)));
    assert_eq!(spare.received().len(), 1);
}
