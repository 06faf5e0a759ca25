//! Where a depot is, and how it is opened. Credentials come from the environment or from a file, and are nowhere shown.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::objects::{Objects, without_queries};
use crate::seal::{Keyring, SealKey, SecretFileError, read_secret};

/// Requests of one transfer that are under way at the same time.
pub const PARALLEL_MAX: usize = 256;
/// Threads that hash and compress.
pub const WORKERS_MAX: usize = 64;
/// Most key files.
pub const SEAL_KEYS_MAX: usize = 16;
/// The shortest grace: an upload must be done in half of it.
pub const GRACE_MS_MIN: u64 = 10 * 60_000;
/// The longest: 30 days.
pub const GRACE_MS_MAX: u64 = 30 * 86_400_000;
/// Levels of zstd.
pub const ZSTD_LEVEL_MAX: i32 = 19;
/// Largest credentials file.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;
/// A request is tried again so often, after failures that may pass.
const RETRIES_MAX: usize = 6;
/// No try begins later than this after the first.
const RETRY_MS_MAX: u64 = 60_000;
/// Waits between tries: from this …
const BACKOFF_MS_MIN: u64 = 100;
/// … to this.
const BACKOFF_MS_MAX: u64 = 5_000;
/// A connection must stand within this.
const CONNECT_MS_MAX: u64 = 10_000;
/// A try must be answered in full within this.
const TRY_MS_MAX: u64 = 30_000;

/// How a depot is opened.
#[derive(Debug, Clone)]
pub struct DepotConfig {
    /// `file:///directory`, `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`.
    pub url: String,
    /// Another server than the cloud's, such as `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// Whether the endpoint may be `http:`.
    pub allow_http: bool,
    /// Region of the bucket, for S3.
    pub region: Option<String>,
    /// Lines `NAME=VALUE` as in the environment (`AWS_SECRET_ACCESS_KEY`, `AZURE_STORAGE_ACCOUNT_KEY`,
    /// `GOOGLE_SERVICE_ACCOUNT`, …); mode 0600. Without it the environment is used.
    pub credentials_file: Option<PathBuf>,
    /// Key files ([`SealKey::read`]): the first seals, all of them open. None: nothing is sealed.
    pub seal_keys: Vec<PathBuf>,
    /// Whether what is not sealed is read although there are keys.
    pub accept_unsealed: bool,
    /// For how long what nobody refers to is kept, in ms. What the depot was made with counts.
    pub grace_ms: u64,
    /// Requests under way at the same time.
    pub parallel: usize,
    /// Threads that hash and compress.
    pub workers: usize,
    /// zstd's level.
    pub zstd_level: i32,
}

impl DepotConfig {
    /// The defaults, at `url`.
    pub fn at(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            endpoint: None,
            allow_http: false,
            region: None,
            credentials_file: None,
            seal_keys: Vec::new(),
            accept_unsealed: false,
            grace_ms: 6 * 3_600_000,
            parallel: 16,
            workers: std::thread::available_parallelism().map_or(2, usize::from).min(WORKERS_MAX),
            zstd_level: 1,
        }
    }
}

/// Why a depot cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is not understood.
    #[error(
        "`{url}` is no place for a depot: {why}; write file:///directory, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix"
    )]
    Url {
        /// As given, without what follows a question mark.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// A number is out of its range.
    #[error("{setting} is {found}, {min} to {max} are allowed")]
    Range {
        /// Which.
        setting: &'static str,
        /// As given.
        found: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A file with keys or credentials is not taken.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// The directory cannot be made.
    #[error("the directory `{}` cannot be used: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store's client refuses its settings.
    #[error("`{url}` cannot be used: {why}")]
    Store {
        /// As given, without what follows a question mark.
        url: String,
        /// What the client says, without credentials.
        why: String,
    },
}

pub(crate) fn check_ranges(config: &DepotConfig) -> Result<(), OpenError> {
    let level = u64::try_from(config.zstd_level).unwrap_or_default();
    let ranges = [
        ("grace_ms", config.grace_ms, GRACE_MS_MIN, GRACE_MS_MAX),
        ("parallel", config.parallel as u64, 1, PARALLEL_MAX as u64),
        ("workers", config.workers as u64, 1, WORKERS_MAX as u64),
        ("seal_keys", config.seal_keys.len() as u64, 0, SEAL_KEYS_MAX as u64),
        ("zstd_level", level, 1, u64::from(ZSTD_LEVEL_MAX.unsigned_abs())),
    ];
    match ranges.into_iter().find(|(_, found, min, max)| !(min..=max).contains(&found)) {
        Some((setting, found, min, max)) => Err(OpenError::Range { setting, found, min, max }),
        None => Ok(()),
    }
}

pub(crate) fn keyring(config: &DepotConfig) -> Result<Keyring, OpenError> {
    let keys: Result<Vec<_>, _> = config.seal_keys.iter().map(|path| SealKey::read(path)).collect();
    Ok(Keyring::new(keys?, config.accept_unsealed))
}

/// The store that the URL names. Nothing is sent.
pub(crate) fn connect(config: &DepotConfig) -> Result<Objects, OpenError> {
    let url = without_queries(&config.url);
    let wrong = |why: &str| OpenError::Url { url: url.clone(), why: why.to_owned() };
    let (scheme, rest) = config.url.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
    if rest.contains(['?', '#']) {
        return Err(wrong("it has a query; credentials belong in a file or in the environment"));
    }
    if scheme == "file" {
        return directory(FilePath::new(rest));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(wrong("it names no bucket"));
    }
    if bucket.contains('@') {
        return Err(wrong("it has a user; credentials belong in a file or in the environment"));
    }
    let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|error| wrong(&error.to_string()))?;
    // What the HTTP client finds when it asks for TLS. If another one was there first, it is the daemon's own choice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let given = credentials(config)?;
    let built = match scheme {
        "s3" => s3(config, bucket, &given),
        "az" => azure(config, bucket, &given),
        "gs" => gcs(config, bucket, &given),
        _ => return Err(wrong("its scheme is unknown")),
    };
    let store = built
        .map_err(|error| OpenError::Store { url: url.clone(), why: without_queries(&error.to_string()) })?;
    Ok(Objects::new(store, prefix, None))
}

fn directory(path: &FilePath) -> Result<Objects, OpenError> {
    let failed = |source| OpenError::Directory { path: path.to_owned(), source };
    if !path.is_absolute() {
        return Err(OpenError::Url {
            url: format!("file://{}", path.display()),
            why: "its path is not absolute".to_owned(),
        });
    }
    std::fs::create_dir_all(path).map_err(failed)?;
    let store = LocalFileSystem::new_with_prefix(path)
        .map_err(|error| failed(std::io::Error::other(error.to_string())))?
        // What was acknowledged survives power loss.
        .with_fsync(true);
    Ok(Objects::new(Arc::new(store), Path::default(), Some(path.to_owned())))
}

/// Names as in the environment, lower case, and values.
type Given = Option<Vec<(String, String)>>;

fn credentials(config: &DepotConfig) -> Result<Given, OpenError> {
    let Some(path) = &config.credentials_file else { return Ok(None) };
    let text = read_secret(path, CREDENTIALS_BYTES_MAX)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs: Option<Vec<_>> = lines
        .map(|line| line.split_once('=').map(|(k, v)| (k.trim().to_ascii_lowercase(), v.trim().to_owned())))
        .collect();
    let content = || SecretFileError::Content { path: path.clone(), expected: "must hold lines NAME=VALUE" };
    Ok(Some(pairs.ok_or_else(content)?))
}

fn client(config: &DepotConfig) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
        .with_timeout(Duration::from_millis(TRY_MS_MAX))
        .with_pool_max_idle_per_host(config.parallel)
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(BACKOFF_MS_MIN),
        max_backoff: Duration::from_millis(BACKOFF_MS_MAX),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: RETRIES_MAX, retry_timeout: Duration::from_millis(RETRY_MS_MAX) }
}

type Built = object_store::Result<Arc<dyn ObjectStore>>;

fn s3(config: &DepotConfig, bucket: &str, given: &Given) -> Built {
    let mut builder = match given {
        None => AmazonS3Builder::from_env(),
        Some(pairs) => pairs.iter().try_fold(AmazonS3Builder::new(), |builder, (name, value)| {
            Ok::<_, object_store::Error>(builder.with_config(name.parse::<AmazonS3ConfigKey>()?, value))
        })?,
    };
    // Options of the client as a whole, so they come first; the endpoint afterwards.
    builder = builder.with_client_options(client(config)).with_retry(retry()).with_bucket_name(bucket);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(config.allow_http);
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    Ok(Arc::new(builder.build()?))
}

fn azure(config: &DepotConfig, container: &str, given: &Given) -> Built {
    let mut builder = match given {
        None => MicrosoftAzureBuilder::from_env(),
        Some(pairs) => pairs.iter().try_fold(MicrosoftAzureBuilder::new(), |builder, (name, value)| {
            Ok::<_, object_store::Error>(builder.with_config(name.parse::<AzureConfigKey>()?, value))
        })?,
    };
    builder = builder.with_client_options(client(config)).with_retry(retry()).with_container_name(container);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.clone()).with_allow_http(config.allow_http);
    }
    Ok(Arc::new(builder.build()?))
}

fn gcs(config: &DepotConfig, bucket: &str, given: &Given) -> Built {
    let mut builder = match given {
        None => GoogleCloudStorageBuilder::from_env(),
        Some(pairs) => {
            pairs.iter().try_fold(GoogleCloudStorageBuilder::new(), |builder, (name, value)| {
                Ok::<_, object_store::Error>(builder.with_config(name.parse::<GoogleConfigKey>()?, value))
            })?
        }
    };
    builder = builder.with_client_options(client(config)).with_retry(retry()).with_bucket_name(bucket);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    Ok(Arc::new(builder.build()?))
}
