//! The model providers over real HTTP, against [`scripted_provider`].

mod answers;
mod failures;
mod scripted_provider;

use std::sync::Arc;

use engine::port::model::{Message, Model, ModelAnswer, ModelError, ModelRequest, OfferedTool, PreviewSink, UserBlock};
use engine::port::{Entropy, PreviewDelta};
use serde_json::{Value, json};
use server::config::TimeSpan;
use server::model::{ModelSettings, ModelsConfig, ProviderEnvironment, ProviderKind, Router};
use server::secret::Secret;
use session::agent::{Effort, ModelConfig, Speed};
use session::content::ContentBlock;
use session::id::SessionId;

use scripted_provider::{Reply, ScriptedProvider};

const KEY: &str = "sk-test-0123456789";
const BOTH: [ProviderKind; 2] = [ProviderKind::Anthropic, ProviderKind::Openai];

/// Draws zero: waits between tries are as short as they can be.
struct Zero;

impl Entropy for Zero {
    fn draw(&self) -> u128 {
        0
    }
}

#[derive(Default)]
struct Recorder(Vec<PreviewDelta>);

impl PreviewSink for Recorder {
    fn preview(&mut self, delta: PreviewDelta) {
        self.0.push(delta);
    }
}

impl Recorder {
    fn text(&self) -> String {
        let text = |delta: &PreviewDelta| match delta {
            PreviewDelta::Text { text, .. } => Some(text.clone()),
            _ => None,
        };
        self.0.iter().filter_map(text).collect()
    }
}

/// An entry that leads to `provider` and waits long enough for any machine.
fn settings(kind: ProviderKind, provider: &ScriptedProvider) -> ModelSettings {
    let mut settings = ModelSettings::new(kind);
    settings.base_url = Some(provider.url());
    settings.api_key = Some(Secret::new(KEY));
    settings.patience.idle_timeout = TimeSpan::from_secs(60);
    settings
}

fn router(entries: impl IntoIterator<Item = (&'static str, ModelSettings)>) -> Router {
    let models = ModelsConfig(entries.into_iter().map(|(id, settings)| (id.to_owned(), settings)).collect());
    Router::new(&models, &ProviderEnvironment::default(), Arc::new(Zero)).unwrap()
}

fn request() -> ModelRequest {
    ModelRequest {
        session_id: SessionId::from("sesn_1"),
        model: ModelConfig { id: "main".into(), effort: Effort::High, speed: Speed::Standard, inference_geo: None },
        system: Some("be brief".into()),
        tools: vec![OfferedTool {
            name: "bash".into(),
            description: "runs a command".into(),
            input_schema: json!({"type": "object"}),
        }],
        messages: vec![Message::User(vec![UserBlock::Content(ContentBlock::text("go"))])].into(),
    }
}

async fn ask(router: &Router) -> (Result<ModelAnswer, ModelError>, Recorder) {
    let mut recorder = Recorder::default();
    let answer = router.answer(request(), &mut recorder).await;
    (answer, recorder)
}

/// Starts a provider with `script` and asks it once.
async fn play(kind: ProviderKind, script: Vec<Reply>) -> (Result<ModelAnswer, ModelError>, Recorder, ScriptedProvider) {
    let provider = ScriptedProvider::start(script).await;
    let (answer, recorder) = ask(&router([("main", settings(kind, &provider))])).await;
    (answer, recorder, provider)
}

fn reply(fields: Value) -> Reply {
    serde_json::from_value(fields).unwrap()
}
