//! Whatever happens to a session, its snapshot is the fold of its log.

use serde_json::{Map, Value};
use session::command::{AnswerBlock, ModelOutcome, ModelStop};
use session::content::ContentBlock;
use session::event::{Confirmation, ModelUsage, SessionErrorKind};
use session::{ClientEvent, Command, Poster};

use super::Subject;
use super::story::{Story, work_id};

/// How many commands a history has.
const COMMANDS: usize = 60;

/// The history of one fixed seed. Backends run [`folds_to_its_snapshot`] with others.
pub async fn a_history_folds_to_its_snapshot(subject: &impl Subject) {
    folds_to_its_snapshot(subject, 1, 0x5eed).await;
}

/// A random history of the session numbered `number`: after each append the stored state is the fold of the stored
/// records, and so it is when the snapshot has to be thrown away.
pub async fn folds_to_its_snapshot(subject: &impl Subject, number: u32, seed: u64) {
    let store = subject.store();
    let mut dice = Dice(seed);
    let (mut story, created) = Story::begin(number);
    store.append(created).await.expect("the session is new");
    for _ in 0..COMMANDS {
        let Some(append) = random_command(&story, &mut dice).and_then(|command| story.try_tell(command)) else {
            continue;
        };
        store.append(append).await.expect("nobody else appends");
        let loaded = store.load(story.id()).await.expect("the store answers").expect("it is there");
        assert_eq!(loaded.state, story.state, "seed {seed}");
    }
    let records = store.read(story.id(), 0, 100_000).await.expect("the store answers");
    let records: Vec<_> = records.into_iter().map(|stored| stored.record).collect();
    assert_eq!(records.len(), story.records.len(), "seed {seed}");
    for (read, told) in records.iter().zip(&story.records) {
        assert_eq!(read, told, "seed {seed}");
    }
    assert_eq!(session::fold(None, &records).as_ref(), Some(&story.state), "seed {seed}");
    if subject.spoil_snapshots().await {
        let folded = store.load(story.id()).await.expect("the store answers").expect("it is there");
        assert_eq!(folded.state, story.state, "seed {seed}");
    }
}

/// SplitMix64: a history is repeated by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % sides
    }
}

fn random_command(story: &Story, dice: &mut Dice) -> Option<Command> {
    let state = &story.state;
    let usage = ModelUsage { input_tokens: dice.roll(1000), output_tokens: dice.roll(100), ..ModelUsage::default() };
    let open_call = state.open_calls().next().map(|call| (call.id.clone(), call.unconfirmed));
    let request = state.turn.as_ref().and_then(|turn| turn.request.clone());
    let post = |event, poster| Command::Post { events: vec![event], poster };
    Some(match (dice.roll(10), request, open_call) {
        (0, ..) => post(ClientEvent::Interrupt { session_thread_id: None }, Poster::Application),
        (1, ..) => Command::Update {
            title: Some((dice.roll(2) == 0).then(|| format!("title {}", dice.roll(9)))),
            metadata: [("key".to_owned(), (dice.roll(2) == 0).then(|| "value\0".to_owned()))].into(),
            agent: None,
        },
        (2, ..) => Command::ApplyInterrupt { usage },
        (3, ..) => Command::TakeOver { epoch: dice.roll(5) },
        (4, ..) => Command::Resume,
        (_, Some(request), _) => {
            Command::FinishModelRequest { span_id: request.span_id, outcome: random_outcome(dice), usage }
        }
        (5 | 6, None, Some((id, true))) => {
            let result = if dice.roll(2) == 0 { Confirmation::Allow } else { Confirmation::Deny };
            post(ClientEvent::ToolConfirmation { tool_use_id: id, result, deny_message: None }, Poster::Application)
        }
        (5, None, Some((id, false))) if dice.roll(2) == 0 => Command::Expose { calls: vec![id], work_id: None },
        (5, None, Some((id, false))) => Command::StartTool { tool_use_id: id, work_id: work_id(1) },
        (6, None, Some((..))) => Command::EndLease { work_id: work_id(1) },
        (_, None, Some((id, _))) => {
            let content = vec![ContentBlock::text("done")];
            post(ClientEvent::ToolResult { tool_use_id: id, content, is_error: dice.roll(4) == 0 }, Poster::CloudWorker)
        }
        (7 | 8, None, None) => {
            let content = vec![ContentBlock::text(format!("message {}", dice.roll(100)))];
            post(ClientEvent::Message { content }, Poster::Application)
        }
        (_, None, None) => Command::BeginModelRequest,
    })
}

fn random_outcome(dice: &mut Dice) -> ModelOutcome {
    let name = |roll| ["bash", "read", "write", "no_such_tool"][usize::try_from(roll).unwrap_or_default()].to_owned();
    let blocks = match dice.roll(6) {
        0 => return ModelOutcome::Lost,
        1 => {
            return ModelOutcome::Failed {
                kind: SessionErrorKind::ModelOverloaded,
                message: "overloaded".to_owned(),
                retryable: dice.roll(2) == 0,
                retry_after_ms: None,
            };
        }
        2 => vec![AnswerBlock::Text("that is all".to_owned())],
        3 => vec![
            AnswerBlock::Thinking(Value::String("hm".to_owned())),
            AnswerBlock::Text("let me see".to_owned()),
            AnswerBlock::ToolUse { name: name(dice.roll(4)), input: Map::new(), problem: None },
        ],
        calls => (0..calls)
            .map(|_| AnswerBlock::ToolUse { name: name(dice.roll(4)), input: Map::new(), problem: None })
            .collect(),
    };
    ModelOutcome::Answered { blocks, stop: ModelStop::EndTurn }
}
