//! Metrics: one recorder for the process, told in Prometheus' text format.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds, from a tenth of a millisecond to a minute.
const SECONDS: [f64; 14] = [
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];
/// How late events are: from seconds to a month.
const LATE: (&str, [f64; 12]) = (
    "highwater_speed_late_seconds",
    [
        1.0,
        10.0,
        60.0,
        300.0,
        900.0,
        3_600.0,
        10_800.0,
        43_200.0,
        86_400.0,
        259_200.0,
        604_800.0,
        2_592_000.0,
    ],
);
/// Histograms collect until they are told; without anybody asking they are drained this often.
const UPKEEP: Duration = Duration::from_secs(5);

fn builder() -> anyhow::Result<PrometheusBuilder> {
    let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?;
    Ok(builder.set_buckets_for_metric(Matcher::Full(LATE.0.to_owned()), &LATE.1)?)
}

/// Records the process's metrics, for a process that serves them by itself.
pub(crate) fn record() -> anyhow::Result<PrometheusHandle> {
    let handle = builder()?.install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Records the process's metrics and serves them there (port 0: a free one). Where they are, and the handle.
pub(crate) async fn serve(listen: SocketAddr) -> anyhow::Result<(String, PrometheusHandle)> {
    let said = || format!("cannot listen on {listen} (metrics.listen)");
    // The exporter does not say which port it took: take one for it.
    let bound = TcpListener::bind(listen)
        .and_then(|socket| socket.local_addr())
        .with_context(said)?;
    let (recorder, exporter) = builder()?.with_http_listener(bound).build().with_context(said)?;
    let handle = recorder.handle();
    ::metrics::set_global_recorder(recorder).context("metrics are recorded already")?;
    tokio::spawn(async move {
        if exporter.await.is_err() {
            tracing::warn!("metrics are no longer served");
        }
    });
    Ok((format!("http://{bound}/metrics"), handle))
}
