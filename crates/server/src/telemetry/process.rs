//! What the kernel knows of this process, read from `/proc` at each scrape.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Ticks of `/proc/PID/stat` in a second: fixed at 100 in what Linux shows to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time and memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time since the process began, all threads.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub threads: u64,
    /// Since the machine began.
    pub started_seconds: f64,
}

/// What the process with this id uses; `None` when there is none.
pub fn usage(process_id: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{process_id}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let page = rustix::param::page_size() as u64;
    Some(Usage {
        cpu_seconds: (field(14)? + field(15)?) as f64 / TICKS_PER_SECOND,
        threads: field(20)?,
        started_seconds: field(22)? as f64 / TICKS_PER_SECOND,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page,
    })
}

/// The `process_*` series.
#[derive(Debug)]
pub struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let usage = usage(std::process::id()).unwrap_or_default();
        gauge("process_resident_memory_bytes", "Memory that the process holds", usage.resident_bytes as f64)?;
        gauge("process_virtual_memory_bytes", "Address space of the process", usage.virtual_bytes as f64)?;
        gauge("process_threads", "Threads of the process", usage.threads as f64)?;
        gauge(
            "process_start_time_seconds",
            "When the process began, since the epoch",
            boot_seconds() + usage.started_seconds,
        )?;
        let open = fs::read_dir("/proc/self/fd").map(|entries| entries.count()).unwrap_or_default();
        gauge("process_open_fds", "Open file descriptors", open as f64)?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        gauge("process_max_fds", "File descriptors that may be open", limit.map_or(f64::INFINITY, |max| max as f64))?;
        let cpu = ConstCounter::new(usage.cpu_seconds);
        let help = "CPU time used by the process";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)
    }
}

/// When the machine began, in seconds since the epoch.
fn boot_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 0 && usage.virtual_bytes >= usage.resident_bytes && usage.threads >= 1);
        assert!(boot_seconds() + usage.started_seconds > 1_600_000_000.0);
    }
}
