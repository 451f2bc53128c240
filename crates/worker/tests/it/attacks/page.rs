//! Holds the table of `docs/security.md` to the list of attacks.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::{Attack, corpus};

const BEGIN: &str = "<!-- attacks: begin -->\n";
const END: &str = "<!-- attacks: end -->\n";

#[test]
fn the_page_lists_the_attacks() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security.md");
    // Only the compiled tests may be where they run, in a container say.
    if !path.parent().is_some_and(Path::exists) {
        return;
    }
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the page has a place for the attacks");
    let (found, tail) = rest.split_once(END).expect("the place for the attacks has an end");
    let expected = table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{expected}{END}{tail}")).unwrap();
        return;
    }
    assert!(
        found == expected,
        "docs/security.md is behind the list: UPDATE_DOCS=1 cargo test -p worker the_page_lists"
    );
}

#[test]
fn attacks_have_names_of_their_own() {
    let attacks: Vec<&Attack> = corpus().into_iter().flat_map(|(_, attacks)| attacks).collect();
    let names: BTreeSet<&str> = attacks.iter().map(|attack| attack.name).collect();
    assert_eq!(names.len(), attacks.len(), "a name stands twice");
    for attack in &attacks {
        let is_plain =
            attack.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        assert!(is_plain, "{}", attack.name);
        for sentence in [attack.tried, attack.must] {
            assert!(sentence.ends_with('.') && !sentence.contains(['|', '\n']), "{}: {sentence}", attack.name);
        }
    }
    assert!(attacks.len() >= 150, "{} attacks", attacks.len());
    for (area, attacks) in corpus() {
        let has_control = attacks.iter().any(|attack| attack.control != super::Control::None);
        assert!(has_control, "no attack of the area {:?} is known to work", area.title());
    }
}

fn table() -> String {
    let mut text = String::new();
    let count: usize = corpus().iter().map(|(_, attacks)| attacks.len()).sum();
    writeln!(text, "\n{count} attacks, by what they are aimed at.").unwrap();
    for (area, attacks) in corpus() {
        write!(
            text,
            "\n### {}\n\n| Attack | Tool | What is tried | What must happen |\n|---|---|---|---|\n",
            area.title()
        )
        .unwrap();
        for attack in attacks {
            let open = attack.open_at.map(|(level, why)| format!(" *Not held at the level `{level}`: {why}*"));
            writeln!(
                text,
                "| `{}` | `{}` | {} | {}{} |",
                attack.name,
                attack.tool(),
                attack.tried,
                attack.must,
                open.unwrap_or_default()
            )
            .unwrap();
        }
    }
    text.push('\n');
    text
}
