//! All layers in one process, for `highwater up`: the same code that runs alone, composed.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use highwater_batch::{Batch, Logs};
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{connect, metrics};

/// The running layers. Dropping it ends them wherever they are.
pub(crate) struct Layers {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    cancel: DropGuard,
    /// The query API's URL.
    pub(crate) api: Option<String>,
    /// Where metrics are told, by layer.
    pub(crate) metrics: BTreeMap<String, String>,
}

impl Layers {
    /// Starts all layers on servers that are there.
    pub(crate) async fn start(config: &Config, definitions: &Definitions) -> anyhow::Result<Self> {
        let (store, kafka) = connect::both(config, definitions).await?;
        let (told, recorded) = metrics::serve(config.metrics.listen).await?;
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let definitions = Arc::new(definitions.clone());

        let (defined, ends) = (Arc::clone(&definitions), cancel.clone());
        let api = highwater_serving::serve(&config.serve, defined, store.clone(), recorded, ends).await?;
        let address = api.address();
        tasks.spawn(async move { ("serving layer", api.run().await.context("the serving layer ended")) });

        let (settings, defined, log, ends) = (config.clone(), Arc::clone(&definitions), kafka.clone(), cancel.clone());
        tasks.spawn(async move {
            let run = highwater_batch::archive::serve(&settings, &defined, &log, ends).await;
            ("archiver", run.context("the archiver ended"))
        });

        let (batch, ends) = (
            Batch::new(config.clone(), Definitions::clone(&definitions))?,
            cancel.clone(),
        );
        tasks.spawn(async move {
            batch.schedule(&Logs, &ends).await;
            ("schedule of batch runs", Ok(()))
        });

        let (speed, defined, ends) = (config.speed.clone(), Arc::clone(&definitions), cancel.clone());
        tasks.spawn(async move {
            let run = highwater_speed::run(&speed, &defined, &kafka, &store, ends).await;
            ("speed layer", run.context("the speed layer ended"))
        });
        Ok(Self {
            tasks,
            cancel: cancel.drop_guard(),
            api: Some(format!("http://{address}")),
            metrics: BTreeMap::from([("up".to_owned(), told)]),
        })
    }

    /// Waits until a layer ends by itself.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok((_, Err(error)))) => error,
            Some(Ok((layer, Ok(())))) => anyhow::anyhow!("the {layer} ended by itself"),
            Some(Err(broken)) => {
                anyhow::Error::new(broken).context("a layer broke down: a mistake of ours, please report it")
            }
            None => anyhow::anyhow!("no layer runs"),
        }
    }

    /// Tells all layers to end, and waits until they have.
    pub(crate) async fn stop(mut self) {
        drop(self.cancel);
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok((layer, Ok(()))) => tracing::info!("the {layer} has ended"),
                Ok((_, Err(error))) => tracing::warn!("{error:#}"),
                Err(broken) => tracing::error!("a layer broke down: {broken}"),
            }
        }
    }
}
