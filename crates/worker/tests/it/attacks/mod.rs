//! The attack corpus: what a hostile model or script tries, as data, run against real sandboxes.
//!
//! An [`Attack`] is one entry: what is tried, with which tool, what must happen instead, and the attempt itself.
//! None of them says how its success would show. That is judged in one place, from outside the sandbox, after every
//! attempt alike ([`scene`]): whether a secret came out, a file or process outside changed, a socket of the host was
//! reached, another session was disturbed, a process survived, or the answer holds what no terminal should get.
//! What only the attempt itself can know (a system call that was let in) it tells by printing [`BREACH`].
//!
//! An attack that cannot work anywhere proves nothing. Many entries therefore carry a [`Control`]: the same attempt
//! without confinement, which must be judged a success.
//!
//! - [`run`] runs the corpus at every level of [`run::levels`], and the controls.
//! - [`page`] holds `docs/security.md` to the list.
//! - The other files are the list, one or more an area. An attempt uses nothing but bash and perl-base, so that the
//!   corpus runs in a minimal container too, and names the test's place by `%name%`, see [`scene::Scene::fill`].

mod file_tools;
mod files;
mod kernel;
mod network;
mod page;
mod perl;
mod processes;
mod proxy;
mod resources;
mod run;
mod scene;
mod secrets;
mod service_folder;
mod sessions;
mod text;
mod uploads;

/// Printed by an attempt that got what it must not get, where nobody outside can see it.
pub(crate) const BREACH: &str = "BREACH";

/// What an attack is aimed at; the sections of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Area {
    Files,
    Processes,
    Kernel,
    Resources,
    Network,
    Proxy,
    Secrets,
    Sessions,
    Text,
}

impl Area {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Files => "Files outside the workspace",
            Self::Processes => "Processes outside, and processes that stay",
            Self::Kernel => "The kernel and the confinement itself",
            Self::Resources => "What sessions share",
            Self::Network => "The network and sockets of the host",
            Self::Proxy => "The network behind the egress proxy",
            Self::Secrets => "Credentials and identity",
            Self::Sessions => "Other sessions",
            Self::Text => "Whoever reads an answer",
        }
    }
}

/// How an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// A command for bash.
    Bash(&'static str),
    /// A program for perl, started by bash, with the prelude of [`perl`].
    Perl(&'static str),
    /// The input of a file tool, as JSON.
    Tool(&'static str, &'static str),
}

/// How it is known that the attempt works where nothing stops it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Not at all: it would harm the machine, or it attacks what has no unconfined form.
    None,
    /// In a sandbox with confinement off.
    Unconfined,
    /// Likewise, by a root that has capabilities.
    UnconfinedRoot,
    /// Likewise, where no container's own filter stands in the way.
    Unfiltered,
    /// In a shell that the test starts itself.
    PlainShell,
    /// Likewise, through a proxy that connects wherever it is told to.
    NaiveProxy,
}

/// How the attempt's processes are brought to their end after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The model restarts the shell.
    Restarted,
    /// A later call runs into its timeout.
    TimedOut,
    /// A later call is cancelled.
    Cancelled,
    /// The session is closed.
    Closed,
    /// The worker is gone: its end of the pipe closes.
    WorkerDied,
    /// The session is closed and its workspace deleted.
    Removed,
}

/// What an answer must be besides harmless, given its text.
pub(crate) type Expectation = fn(&str) -> bool;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Attack {
    /// Stable, in kebab case: what logs and the page call it.
    pub name: &'static str,
    /// One sentence: what is tried.
    pub tried: &'static str,
    /// One sentence: what must happen.
    pub must: &'static str,
    pub attempt: Attempt,
    /// A command for bash that prepares the attempt, in a call of its own.
    pub setup: Option<&'static str>,
    pub timeout_ms: u64,
    pub rounds: usize,
    pub ending: Ending,
    pub control: Control,
    pub expected: Option<Expectation>,
    /// The level that does not hold it, by its name, and why. The run demands that it is so.
    pub open_at: Option<(&'static str, &'static str)>,
}

impl Attack {
    const fn new(name: &'static str, tried: &'static str, must: &'static str, attempt: Attempt) -> Self {
        Self {
            name,
            tried,
            must,
            attempt,
            setup: None,
            timeout_ms: 20_000,
            rounds: 1,
            ending: Ending::Restarted,
            control: Control::None,
            expected: None,
            open_at: None,
        }
    }

    const fn after(mut self, setup: &'static str) -> Self {
        self.setup = Some(setup);
        self
    }

    const fn within_ms(mut self, timeout_ms: u64) -> Self {
        self.timeout_ms = timeout_ms;
        self
    }

    const fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    const fn ending(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    const fn proven(mut self, control: Control) -> Self {
        self.control = control;
        self
    }

    const fn answers(mut self, expected: Expectation) -> Self {
        self.expected = Some(expected);
        self
    }

    const fn open_at(mut self, level: &'static str, why: &'static str) -> Self {
        self.open_at = Some((level, why));
        self
    }

    /// The tool as the page names it.
    pub(crate) fn tool(&self) -> &'static str {
        match self.attempt {
            Attempt::Bash(_) | Attempt::Perl(_) => "bash",
            Attempt::Tool(tool, _) => tool,
        }
    }
}

const fn bash(name: &'static str, tried: &'static str, must: &'static str, command: &'static str) -> Attack {
    Attack::new(name, tried, must, Attempt::Bash(command))
}

const fn perl(name: &'static str, tried: &'static str, must: &'static str, program: &'static str) -> Attack {
    Attack::new(name, tried, must, Attempt::Perl(program))
}

const fn tool(
    tool: &'static str,
    name: &'static str,
    tried: &'static str,
    must: &'static str,
    input: &'static str,
) -> Attack {
    Attack::new(name, tried, must, Attempt::Tool(tool, input))
}

/// The whole list.
pub(crate) fn corpus() -> Vec<(Area, Vec<&'static Attack>)> {
    let areas: [(Area, &[&'static [Attack]]); 9] = [
        (Area::Files, &[files::ATTACKS, uploads::ATTACKS, service_folder::ATTACKS, file_tools::ATTACKS]),
        (Area::Processes, &[processes::ATTACKS]),
        (Area::Kernel, &[kernel::ATTACKS]),
        (Area::Resources, &[resources::ATTACKS]),
        (Area::Network, &[network::ATTACKS]),
        (Area::Proxy, &[proxy::ATTACKS]),
        (Area::Secrets, &[secrets::ATTACKS]),
        (Area::Sessions, &[sessions::ATTACKS]),
        (Area::Text, &[text::ATTACKS]),
    ];
    areas.into_iter().map(|(area, files)| (area, files.iter().copied().flatten().collect())).collect()
}
