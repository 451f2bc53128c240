//! How often what happened, to tell, and to see that it does happen.

use std::collections::BTreeMap;
use std::fmt;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Count {
    Record,
    Crash,
    Drain,
    /// Of the database or the object store.
    Outage,
    WorkerDeath,
    /// A request of which nobody learnt what came of it.
    LostAnswer,
    Snapshot,
    /// Files that were made anew with another worker, or another disk.
    Restore,
    /// A result that told the model of lost files.
    LossTold,
    FileGiven,
    FileMade,
    /// While everything ran.
    BlobCollected,
}

impl Count {
    pub(crate) const ALL: [Self; 12] = [
        Self::Record,
        Self::Crash,
        Self::Drain,
        Self::Outage,
        Self::WorkerDeath,
        Self::LostAnswer,
        Self::Snapshot,
        Self::Restore,
        Self::LossTold,
        Self::FileGiven,
        Self::FileMade,
        Self::BlobCollected,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Record => "records",
            Self::Crash => "crashes",
            Self::Drain => "drains",
            Self::Outage => "outages",
            Self::WorkerDeath => "workers lost",
            Self::LostAnswer => "answers lost",
            Self::Snapshot => "snapshots",
            Self::Restore => "restores",
            Self::LossTold => "losses told",
            Self::FileGiven => "files given",
            Self::FileMade => "files made",
            Self::BlobCollected => "blobs collected",
        }
    }
}

/// The counts of one simulation, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<Count, usize>);

impl Counts {
    pub(crate) fn add(&mut self, count: Count, times: usize) {
        *self.0.entry(count).or_default() += times;
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|(count, times)| self.add(*count, *times));
    }

    pub(crate) fn of(&self, count: Count) -> usize {
        self.0.get(&count).copied().unwrap_or_default()
    }

    /// What never happened.
    pub(crate) fn missing(&self) -> Vec<Count> {
        Count::ALL.into_iter().filter(|count| self.of(*count) == 0).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told: Vec<String> =
            Count::ALL.iter().map(|count| format!("{} {}", self.of(*count), count.name())).collect();
        f.write_str(&told.join(", "))
    }
}
