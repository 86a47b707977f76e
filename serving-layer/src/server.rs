//! Listening and ending. The address is bound first, so that whoever starts the server can tell it, also where the
//! configuration says port 0.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use shared_connections::store::Store;
use shared_schemas::config::ServeConfig;
use shared_schemas::definitions::Definitions;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::connection::Bounded;
use crate::routes::{Serving, router};
use crate::watch::{Watch, Watched};

/// How long requests under way may go on after the end was asked for.
const GRACE: Duration = Duration::from_secs(10);

/// Why the server is not there.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (serve.listen)")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Serving stopped by itself.
    #[error("the query API stopped")]
    Stopped(#[source] io::Error),
}

/// A server that is bound: connections are accepted once it runs, and wait until then.
pub struct Bound {
    address: SocketAddr,
    listener: TcpListener,
    serving: Arc<Serving>,
    watch: Watch,
    cancel: CancellationToken,
}

/// Binds the query API to its configured address. [`Bound::run`] then serves it until `cancel` is.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(
    config: &ServeConfig,
    definitions: Arc<Definitions>,
    store: Store,
    metrics: PrometheusHandle,
    cancel: CancellationToken,
) -> Result<Bound, ServeError> {
    let listen = |source| ServeError::Listen {
        address: config.listen,
        source,
    };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let watched = Arc::new(Watched::default());
    let watch = Watch {
        definitions: Arc::clone(&definitions),
        store: store.clone(),
        metrics: metrics.clone(),
        watched: Arc::clone(&watched),
    };
    Ok(Bound {
        address,
        listener,
        serving: Arc::new(Serving::new(definitions, store, metrics, watched)),
        watch,
        cancel,
    })
}

impl Bound {
    /// Where it listens; never port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until cancelled; requests under way then have [`GRACE`] to end.
    ///
    /// # Errors
    /// Serving stopped by itself.
    pub async fn run(self) -> Result<(), ServeError> {
        let Self {
            listener,
            serving,
            watch,
            cancel,
            ..
        } = self;
        // A child: where serving ends by itself the watch ends too, and nobody else does.
        let ended = cancel.child_token();
        let watching = tokio::spawn(watch.run(ended.clone()));
        let listener = Bounded::new(listener);
        let server = axum::serve(listener, router(serving)).with_graceful_shutdown(cancel.clone().cancelled_owned());
        let hurry = async {
            cancel.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        let served = tokio::select! {
            served = server => served.map_err(ServeError::Stopped),
            () = hurry => {
                tracing::warn!("requests were still under way after {} s: they are cut off", GRACE.as_secs());
                Ok(())
            }
        };
        ended.cancel();
        if let Err(error) = watching.await {
            tracing::error!("the loop that looks at the views ended by itself: {error}");
        }
        served
    }
}
