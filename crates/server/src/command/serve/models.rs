//! The model router as the API and the metrics see it.

use std::sync::Arc;

use session::agent::{Effort, ModelConfig, Speed};

use crate::config::{Config, ProviderAccess};
use crate::http::{ModelCatalog, ModelInfo};
use crate::model::{ModelsConfig, ProviderEnvironment, ProviderKind, Router};
use crate::telemetry::metrics::labels::Names;

/// The API's view of the models.
pub(super) struct Catalog(pub(super) Arc<Router>);

impl ModelCatalog for Catalog {
    fn check(&self, model_id: &str) -> Result<(), String> {
        self.0.check(model_id)
    }

    fn list(&self) -> Vec<ModelInfo> {
        let models = self.0.list().into_iter().map(|model| ModelInfo {
            id: model.id,
            display_name: model.display_name,
            created_at: model.created_at,
            max_input_tokens: model.context_window_tokens,
            max_tokens: model.max_output_tokens.map(u64::from),
        });
        models.collect()
    }

    fn offers_speed(&self, model_id: &str, speed: Speed) -> bool {
        let model = ModelConfig { id: model_id.to_owned(), effort: Effort::High, speed, inference_geo: None };
        self.0.check_config(&model).is_ok()
    }
}

/// What the metrics call a kind of provider.
pub(super) fn provider_label(provider: ProviderKind) -> &'static str {
    match provider {
        ProviderKind::Anthropic => "anthropic",
        ProviderKind::Openai => "openai",
        ProviderKind::Demo => "demo",
    }
}

/// How the providers are reached.
pub(in crate::command) fn access(config: &Config) -> ProviderEnvironment {
    let ProviderAccess { api_key: anthropic_api_key, base_url: anthropic_base_url, .. } =
        config.providers.anthropic.clone();
    let ProviderAccess { api_key: openai_api_key, base_url: openai_base_url, .. } = config.providers.openai.clone();
    ProviderEnvironment { anthropic_api_key, anthropic_base_url, openai_api_key, openai_base_url }
}

/// The models with metrics of their own: those that the settings name, or the scripted one.
pub(super) fn names(models: &ModelsConfig) -> Names {
    if models.0.is_empty() {
        return Names::new([("demo".to_owned(), "demo")]);
    }
    let named = models.0.iter().filter(|(id, _)| !id.contains('*'));
    Names::new(named.map(|(id, settings)| (id.clone(), provider_label(settings.provider))))
}
