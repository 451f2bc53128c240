//! What tokio knows of its runtime, read at each scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The `tokio_*` series of the runtime that answers the scrape; 0 where none does.
#[derive(Debug)]
pub struct RuntimeCollector;

impl Collector for RuntimeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let metrics = tokio::runtime::Handle::try_current().ok().map(|handle| handle.metrics());
        let workers = metrics.as_ref().map_or(0, |metrics| metrics.num_workers());
        let tasks = metrics.as_ref().map_or(0, |metrics| metrics.num_alive_tasks());
        let queued = metrics.as_ref().map_or(0, |metrics| metrics.global_queue_depth());
        let busy = metrics.as_ref().map_or(0.0, |metrics| {
            (0..workers).map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64()).sum()
        });
        for (name, help, value) in [
            ("tokio_workers", "Threads that run tasks", workers),
            ("tokio_alive_tasks", "Tasks that have not ended", tasks),
            ("tokio_global_queue_depth", "Tasks that wait for any thread", queued),
        ] {
            let gauge = ConstGauge::new(value as f64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counter = ConstCounter::new(busy);
        let help = "Time that the threads spent running tasks";
        counter.encode(encoder.encode_descriptor("tokio_workers_busy_seconds", help, None, counter.metric_type())?)
    }
}
