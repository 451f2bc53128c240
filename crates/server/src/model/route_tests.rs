//! Who answers for which id, and what is said when nobody does.

use session::agent::Effort;

use super::*;
use crate::model::Patience;

struct Zero;

impl Entropy for Zero {
    fn draw(&self) -> u128 {
        0
    }
}

fn router(yaml: &str, environment: &ProviderEnvironment) -> Result<Router, String> {
    let models: ModelsConfig = serde_saphyr::from_str(yaml).unwrap();
    Router::new(&models, environment, Arc::new(Zero)).map_err(|error| error.to_string())
}

fn environment(anthropic_api_key: &str, openai_base_url: &str) -> ProviderEnvironment {
    ProviderEnvironment {
        anthropic_api_key: Some(Secret::new(anthropic_api_key)),
        openai_base_url: Some(openai_base_url.to_owned()),
        ..ProviderEnvironment::default()
    }
}

/// The kind of the provider that answers.
fn provider(router: &Router, id: &str) -> Option<&'static str> {
    router.find(id).map(|route| match route.provider {
        Provider::Anthropic(_) => "anthropic",
        Provider::OpenAi(_) => "openai",
        Provider::Demo => "demo",
    })
}

#[test]
fn without_a_section_the_environment_decides() {
    for (key, url, expected) in [
        ("", "", None),
        ("sk-1", "", Some("anthropic")),
        ("", "http://127.0.0.1:8000/v1", Some("openai")),
        ("sk-1", "http://127.0.0.1:8000/v1", Some("anthropic")),
    ] {
        let router = router("{}", &environment(key, url)).unwrap();
        assert_eq!(provider(&router, "any-model"), expected, "{key} {url}");
        assert_eq!(provider(&router, "demo"), Some("demo"));
        assert_eq!(router.check("any-model").is_ok(), expected.is_some());
        assert_eq!(router.list().iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["demo"]);
    }
    let help = router("{}", &environment("", "")).unwrap().check("claude-x").unwrap_err();
    assert!(help.contains("`claude-x`") && help.contains("ANTHROPIC_API_KEY") && help.contains("OPENAI_BASE_URL"));
}

#[test]
fn the_most_particular_entry_wins() {
    let yaml = "
        '*': { provider: demo }
        claude-*: { provider: anthropic, api_key: k }
        claude-local-*: { provider: openai, base_url: 'http://127.0.0.1:1' }
        claude-local-x: { provider: demo, display_name: X, context_window_tokens: 9000,
                          price: { input_per_million: 1.5, output_per_million: 2 } }
    ";
    let router = router(yaml, &ProviderEnvironment::default()).unwrap();
    for (id, expected) in
        [("other", "demo"), ("claude-opus", "anthropic"), ("claude-local-7b", "openai"), ("claude-local-x", "demo")]
    {
        assert_eq!(provider(&router, id), Some(expected), "{id}");
    }
    assert_eq!(router.context_window("claude-opus"), Some(200_000));
    assert_eq!(router.context_window("claude-local-7b"), None);
    assert_eq!(router.context_window("claude-local-x"), Some(9000));
    let price = router.price("claude-local-x").unwrap();
    assert_eq!((price.input, price.output, price.cache_write), (1_500_000, 2_000_000, 1_500_000));
    let listed = router.list();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id.as_str(), listed[0].display_name.as_str()), ("claude-local-x", "X"));
}

#[test]
fn a_section_refuses_what_it_does_not_name() {
    let router = router("{a-*: {provider: demo}}", &environment("sk-1", "")).unwrap();
    assert!(router.check("a-1").is_ok());
    let help = router.check("demo").unwrap_err();
    assert!(help.contains("`models` section") && help.contains("a-*"), "{help}");
}

#[test]
fn what_a_provider_cannot_do_is_refused_by_name() {
    let yaml = "{a: {provider: anthropic, api_key: k}, o: {provider: openai}}";
    let router = router(yaml, &ProviderEnvironment::default()).unwrap();
    let check = |id: &str, speed, geo: Option<&str>| {
        let inference_geo = geo.map(str::to_owned);
        router.check_config(&ModelConfig { id: id.into(), effort: Effort::High, speed, inference_geo }).err()
    };
    assert_eq!(check("a", Speed::Fast, Some("eu")), None);
    assert_eq!(check("o", Speed::Standard, None), None);
    let refusal = |field: &str| Some(format!("the provider of model `o` has no {field}: leave it out"));
    assert_eq!(check("o", Speed::Fast, None), refusal("speed `fast`"));
    assert_eq!(check("o", Speed::Standard, Some("eu")), refusal("inference_geo"));
    assert!(check("x", Speed::Standard, None).unwrap().contains("`x`"));
}

#[test]
fn bad_entries_are_told_by_name() {
    for (yaml, expected) in [
        ("{m: {provider: anthropic}}", "models.m: there is no key: set api_key, api_key_file or ANTHROPIC_API_KEY"),
        ("{m: {provider: openai, base_url: 'ftp://x'}}", "models.m: the base URL must begin with http:// or https://"),
        (
            "{m: {provider: openai, base_url: nowhere}}",
            "models.m: the base URL cannot be read: relative URL without a base",
        ),
        ("{m: {provider: openai, thinking: adaptive}}", "models.m: thinking is for provider anthropic: use effort"),
        (
            "{m: {provider: anthropic, api_key: k, api_key_file: /k}}",
            "models.m: api_key and api_key_file are both set: keep one of them",
        ),
        (
            "{m: {provider: anthropic, api_key: k, thinking: {budget_tokens: 10}}}",
            "models.m: thinking.budget_tokens must be at least 1024 and less than max_output_tokens (32000)",
        ),
        ("{m: {provider: demo, patience: {attempts_max: 0}}}", "models.m: patience.attempts_max must be at least 1"),
        ("{m: {provider: anthropic, api_key: ''}}", "models.m: the key is empty"),
    ] {
        assert_eq!(router(yaml, &ProviderEnvironment::default()).err().as_deref(), Some(expected), "{yaml}");
    }
    let unknown = router("{m: {provider: demo, fallbacks: [n]}}", &ProviderEnvironment::default()).err().unwrap();
    assert!(unknown.starts_with("models.m: no model provider answers for model `n`"), "{unknown}");
    let missing = router("{m: {provider: openai, api_key_file: /no/such}}", &ProviderEnvironment::default());
    assert!(missing.err().unwrap().starts_with("models.m: api_key_file: cannot read /no/such: "));
}

#[test]
fn a_key_file_is_read_and_the_environments_key_stays_with_its_url() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "sk-file\n").unwrap();
    let mut settings = ModelSettings::new(ProviderKind::Anthropic);
    settings.api_key_file = Some(path);
    assert_eq!(own_key(&settings).unwrap(), Some(Secret::new("sk-file")));

    let mut elsewhere = ModelSettings::new(ProviderKind::Openai);
    elsewhere.base_url = Some("http://elsewhere".to_owned());
    let environment =
        ProviderEnvironment { openai_api_key: Some(Secret::new("sk-env")), ..ProviderEnvironment::default() };
    let holds_key =
        |settings: &ModelSettings| format!("{:?}", openai(settings, &environment).unwrap()).contains("api_key: Some");
    assert!(!holds_key(&elsewhere));
    assert!(holds_key(&ModelSettings::new(ProviderKind::Openai)));
}

#[test]
fn settings_are_read_written_and_never_show_keys() {
    let yaml = "
        m:
          provider: anthropic
          api_key: sk-hidden
          thinking: { budget_tokens: 2048 }
          patience: { idle_timeout: 5s }
    ";
    let models: ModelsConfig = serde_saphyr::from_str(yaml).unwrap();
    let settings = &models.0["m"];
    assert_eq!(settings.thinking, Thinking::BudgetTokens(2048));
    assert_eq!(settings.patience.idle_timeout.get().as_secs(), 5);
    assert_eq!(settings.patience.attempts_max, Patience::default().attempts_max);
    let shown = serde_json::to_string(&models).unwrap();
    assert!(!shown.contains("sk-hidden") && shown.contains("(hidden)"), "{shown}");
    assert!(serde_saphyr::from_str::<ModelsConfig>("{m: {provider: demo, modle: x}}").is_err());
}

#[test]
fn stars_stand_for_any_text() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("a*", "a", true),
        ("a*", "ba", false),
        ("*a", "ba", true),
        ("a*a", "a", false),
        ("a*b*c", "aXbYc", true),
        ("a*b*c", "acb", false),
        ("*:free", "org/m:free", true),
        ("exact", "exact", true),
        ("exact", "exactly", false),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
    }
}
