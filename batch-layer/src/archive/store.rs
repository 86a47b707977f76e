//! Object stores as the archive's place: built from their own options, and asked once whether they can be used.
//!
//! The table format's own stores are not used: one of them brings a whole SDK. What a commit needs of a store is that an
//! object is written only if it is not there (`If-None-Match`), which each of these does by itself.
//!
//! A request that may be repeated is, a few times and not for ever: the archiver has a patience of its own, and says
//! meanwhile what is wrong. A request whose reply was lost may have done what it asked for; see `commit` for that.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use shared_connections::sentence;
use shared_schemas::config::{Secret, StoreKind};
use url::Url;

/// How long one request may take: the largest file over a slow line.
const REQUEST: Duration = Duration::from_secs(120);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a request is sent again, and how long after the first time at most.
const RETRIES: usize = 4;
const RETRY_FOR: Duration = Duration::from_secs(60);

/// A table in an object store.
///
/// # Errors
/// A sentence: an option that the store has not, or why it can't be used.
pub(super) async fn log_in_store(
    kind: StoreKind,
    bucket: &str,
    path: &str,
    options: &BTreeMap<String, Secret>,
) -> Result<(LogStoreRef, String), String> {
    let options: Vec<(String, String)> = (environment(kind).into_iter()).chain(given(kind, options)?).collect();
    let root = build(kind, bucket, &options).map_err(|error| sentence(&error))?;
    let place = format!("{}://{bucket}/{path}", kind.scheme());
    let place = place.trim_end_matches('/').to_owned();
    let url = Url::parse(&format!("{place}/")).map_err(|error| error.to_string())?;
    // The first page of what is there; nothing there is fine.
    let seen = root.list(Some(&Path::from(path))).next().await;
    if let Some(Err(error)) = seen {
        return Err(unusable(kind, bucket, &error));
    }
    let storage = StorageConfig::default();
    let table = storage.decorate_store(Arc::clone(&root), &url);
    let table = table.map_err(|error| sentence(&error))?;
    Ok((default_logstore(Arc::new(table), root, &url, &storage), place))
}

/// What the environment says that the store's options know.
fn environment(kind: StoreKind) -> Vec<(String, String)> {
    let prefix = match kind {
        StoreKind::S3 => "AWS_",
        StoreKind::Google => "GOOGLE_",
        StoreKind::Azure => "AZURE_",
    };
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .filter(|(name, _)| knows(kind, name))
        .collect()
}

fn given(kind: StoreKind, options: &BTreeMap<String, Secret>) -> Result<Vec<(String, String)>, String> {
    if let Some(unknown) = options.keys().find(|name| !knows(kind, name)) {
        let scheme = kind.scheme();
        return Err(format!(
            "{scheme}: has no option `{unknown}`: mend it in archive.options"
        ));
    }
    let given = options.iter();
    Ok(given
        .map(|(name, value)| (name.clone(), value.reveal().to_owned()))
        .collect())
}

fn knows(kind: StoreKind, name: &str) -> bool {
    match kind {
        StoreKind::S3 => object_store::aws::AmazonS3ConfigKey::from_str(name).is_ok(),
        StoreKind::Google => object_store::gcp::GoogleConfigKey::from_str(name).is_ok(),
        StoreKind::Azure => object_store::azure::AzureConfigKey::from_str(name).is_ok(),
    }
}

fn build(kind: StoreKind, bucket: &str, options: &[(String, String)]) -> object_store::Result<Arc<dyn ObjectStore>> {
    let client = ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT);
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES,
        retry_timeout: RETRY_FOR,
    };
    // An option that the builder does not know was refused before.
    macro_rules! with_options {
        ($builder:expr) => {
            options.iter().fold(
                $builder.with_client_options(client).with_retry(retry),
                |builder, (name, value)| match name.parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                },
            )
        };
    }
    Ok(match kind {
        StoreKind::S3 => {
            let builder = with_options!(AmazonS3Builder::new()).with_bucket_name(bucket);
            Arc::new(builder.with_conditional_put(S3ConditionalPut::ETagMatch).build()?)
        }
        StoreKind::Google => {
            let builder = with_options!(GoogleCloudStorageBuilder::new());
            Arc::new(builder.with_bucket_name(bucket).build()?)
        }
        StoreKind::Azure => {
            let builder = with_options!(MicrosoftAzureBuilder::new());
            Arc::new(builder.with_container_name(bucket).build()?)
        }
    })
}

/// Why the store can't be used, and what to do.
fn unusable(kind: StoreKind, bucket: &str, error: &object_store::Error) -> String {
    let (keys, endpoint) = match kind {
        StoreKind::S3 => ("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT"),
        StoreKind::Google => ("GOOGLE_SERVICE_ACCOUNT", "archive.options"),
        StoreKind::Azure => (
            "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
            "AZURE_STORAGE_ENDPOINT",
        ),
    };
    let said = sentence(error);
    // Of a list of objects the status stands in the text alone.
    let has_status = |status: &str| said.contains(&format!("status code: {status}"));
    // Some that speak S3 answer a key that they don't know with 404.
    let of_keys = said.to_ascii_lowercase().contains("access key");
    match error {
        _ if has_status("404") && !of_keys => format!("there is no bucket `{bucket}`: make it, or name another"),
        _ if has_status("401") || has_status("403") || of_keys => {
            format!("the store refuses its keys: look at {keys}, and at what they may do with bucket `{bucket}`")
        }
        // Where no key is given, the clouds' own machines are asked for one.
        _ if said.contains("//169.254.") || said.contains("//metadata") => format!("it has no keys: set {keys}"),
        _ => match http_kind(error) {
            Some(HttpErrorKind::Connect | HttpErrorKind::Timeout) => {
                format!("it can't be reached: look at {endpoint} and the network ({said})")
            }
            _ => format!("it does not answer as it should: {said}"),
        },
    }
}

fn http_kind(error: &object_store::Error) -> Option<HttpErrorKind> {
    let error: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<HttpError>())
        .map(HttpError::kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(of: &[(&str, &str)]) -> BTreeMap<String, Secret> {
        let of = of.iter();
        of.map(|(name, value)| ((*name).to_owned(), Secret::new(*value)))
            .collect()
    }

    #[tokio::test]
    async fn what_is_wrong_is_told_in_a_sentence() {
        let typo = options(&[("aws_endpiont", "http://127.0.0.1:1")]);
        let error = log_in_store(StoreKind::S3, "b", "p", &typo).await.err().unwrap();
        assert_eq!(error, "s3: has no option `aws_endpiont`: mend it in archive.options");
        // Nothing listens there; over TLS too, which must find its cryptography.
        for endpoint in ["http://127.0.0.1:1", "https://127.0.0.1:1"] {
            let nobody = options(&[
                ("aws_endpoint", endpoint),
                ("aws_allow_http", "true"),
                ("aws_access_key_id", "k"),
                ("aws_secret_access_key", "s"),
            ]);
            let error = log_in_store(StoreKind::S3, "b", "p", &nobody).await.err().unwrap();
            assert!(
                error.starts_with("it can't be reached: look at AWS_ENDPOINT"),
                "{error}"
            );
        }
    }

    #[test]
    fn each_store_is_built_from_its_options() {
        let azure = [("azure_storage_account_name".to_owned(), "account".to_owned())];
        build(StoreKind::Azure, "container", &azure).unwrap();
        let google = [("google_skip_signature".to_owned(), "true".to_owned())];
        build(StoreKind::Google, "bucket", &google).unwrap();
        assert!(knows(StoreKind::Google, "google_service_account"));
        assert!(knows(StoreKind::S3, "aws_allow_http"));
        assert!(!knows(StoreKind::Azure, "aws_allow_http"));
    }
}
