//! The input of a tool call as a model wrote it: JSON that may be broken.

use serde_json::{Map, Value};
use session::command::AnswerBlock;

/// The call of `name` with `json` as its input. What cannot be read becomes a problem that the model is told of;
/// `out_of_tokens` says that the answer was cut short, which is the likely reason. No input at all is an empty one.
pub(super) fn tool_use(name: String, json: &str, out_of_tokens: bool) -> AnswerBlock {
    let json = if json.trim().is_empty() { "{}" } else { json };
    let problem = match serde_json::from_str::<Value>(json) {
        Ok(Value::Object(input)) => return AnswerBlock::ToolUse { name, input, problem: None },
        Ok(other) => format!("the input of this call must be a JSON object, not {}", kind(&other)),
        Err(_) if out_of_tokens => {
            "the input of this call is incomplete: the answer reached its limit of output tokens".to_owned()
        }
        Err(error) => format!("the input of this call is not valid JSON: {error}"),
    };
    AnswerBlock::ToolUse { name, input: Map::new(), problem: Some(problem) }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_inputs_become_problems() {
        for (json, out_of_tokens, expected) in [
            ("{\"a\": 1}", false, None),
            (" ", false, None),
            ("[1]", false, Some("the input of this call must be a JSON object, not an array")),
            ("\"{}\"", false, Some("the input of this call must be a JSON object, not a string")),
            (
                "{\"a\": ",
                true,
                Some("the input of this call is incomplete: the answer reached its limit of output tokens"),
            ),
            (
                "{'a': 1}",
                false,
                Some("the input of this call is not valid JSON: key must be a string at line 1 column 2"),
            ),
        ] {
            let AnswerBlock::ToolUse { name, problem, .. } = tool_use("t".into(), json, out_of_tokens) else {
                panic!("not a call")
            };
            assert_eq!((name.as_str(), problem.as_deref()), ("t", expected), "{json}");
        }
    }
}
