//! The figures, and how they are shown.

use std::fmt;

use serde_json::{Value, json};

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

pub(super) fn at_most(value: f64) -> Goal {
    Goal::AtMost(value)
}

pub(super) fn at_least(value: f64) -> Goal {
    Goal::AtLeast(value)
}

impl Goal {
    fn is_met(self, reached: f64) -> bool {
        match self {
            Self::AtMost(value) => reached <= value,
            Self::AtLeast(value) => reached >= value,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::AtMost(value) => format!("<= {value}"),
            Self::AtLeast(value) => format!(">= {value}"),
        };
        f.pad(&text)
    }
}

/// One figure of the server, beside that of the floor.
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) reached: f64,
    /// `None` where a floor would mean nothing.
    pub(super) floor: Option<f64>,
    pub(super) goal: Goal,
}

/// Everything that was measured.
pub(super) struct Report {
    /// The stores or, for tools, the level of confinement.
    pub(super) subject: &'static str,
    pub(super) cores: usize,
    pub(super) figures: Vec<Figure>,
}

impl Report {
    pub(super) fn to_json(&self) -> Value {
        let figures = self.figures.iter().map(|figure| {
            json!({
                "figure": figure.name,
                "unit": figure.unit,
                "reached": figure.reached,
                "floor": figure.floor,
                "ratio": figure.floor.map(|floor| figure.reached / floor),
                "goal": figure.goal.to_string(),
                "met": figure.goal.is_met(figure.reached),
            })
        });
        json!({"subject": self.subject, "cores": self.cores, "figures": figures.collect::<Vec<_>>()})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cores, {}", self.cores, self.subject)?;
        let width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        writeln!(f, "{:width$}  {:>12}  {:>12}  {:>6}  {:8}", "figure", "reached", "floor", "ratio", "goal")?;
        for figure in &self.figures {
            let value = |value: f64| format!("{value:.2} {}", figure.unit);
            let floor = figure.floor.map_or("-".to_owned(), value);
            let ratio = figure.floor.map_or("-".to_owned(), |floor| format!("{:.2}", figure.reached / floor));
            let missed = if figure.goal.is_met(figure.reached) { "" } else { "  missed" };
            let line = format!("{:width$}  {:>12}  {floor:>12}  {ratio:>6}", figure.name, value(figure.reached));
            writeln!(f, "{line}  {:8}{missed}", figure.goal)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_is_missed_is_said() {
        let figure = |reached, goal| Figure { name: "n".into(), unit: "ms", reached, floor: Some(2.0), goal };
        let report = Report {
            subject: "SQLite",
            cores: 2,
            figures: vec![figure(1.0, at_most(1.5)), figure(1.0, at_least(1.5))],
        };
        let text = report.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(!lines[2].ends_with("missed") && lines[3].ends_with("missed"), "{text}");
        let json = report.to_json();
        assert_eq!((&json["figures"][0]["met"], &json["figures"][1]["met"]), (&json!(true), &json!(false)));
        assert_eq!(json["figures"][0]["ratio"], json!(0.5));
    }
}
