//! Statements and inserts, each with a deadline. What was given up is ended on the server too, by its id.

use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::{Bytes, BytesMut};
use clickhouse::query::Query;
use clickhouse::{Client, RowOwned, RowRead, RowWrite};
use shared_schemas::config::ClickHouseConfig;
use shared_schemas::definitions::Definitions;
use shared_schemas::store::{STATEMENT_LIMIT, Statement, arrow_stream, control_tables, quote, tables, view_tables};

use super::error::StoreError;
use super::pace::{Ids, Pace};

/// For facts and inserts. Beyond it a request counts as failed, and is sent again.
const PATIENCE: Duration = Duration::from_secs(30);
/// An insert's own limits stop it first, while it is sent and while it is answered: they close its connection, where one that is
/// only dropped would stay until the server speaks.
const INSERT_PATIENCE: Duration = Duration::from_secs(2 * PATIENCE.as_secs() + 5);
/// A statement's own limit stops it first.
const ANSWER_PATIENCE: Duration = Duration::from_secs(STATEMENT_LIMIT.as_secs() + 5);
/// What a statement is asked to do, for messages.
pub(super) const ANSWERS: &str = "answer a query";
/// For what goes on at the server when nobody waits for it any longer.
const LONG_PATIENCE: Duration = Duration::from_secs(600);
/// A probe of whether it answers at all.
pub(super) const PROBE: Duration = Duration::from_secs(5);
/// The setting, as a parameter of a request, that names a statement.
const ID: &str = "query_id";

/// What the names of Arrow's formats begin with.
const ARROW: &str = "Arrow";
/// Answers in Arrow's formats are computed on one thread. On several the engine (26.5) comes to a standstill, soon or later, where a
/// statement merges states of `quantilesDD`, be it to a state or to a result: its threads wait for each other, and its limit of
/// time does not end it. Over a month of a year's flights (96,442 batch and 682,939 speed rows) 2 of 6 tries stood still, with
/// and without `FINAL`; on one thread none of 25, and on several none of 25 in each of JSONCompact, TabSeparated and RowBinary.
const ON_ONE_THREAD: (&str, &str) = ("max_threads", "1");
/// Rows of control tables are few: on one thread the engine takes 2.4 ms of processor for a statement, on two 3.4 ms, and a query of
/// the API reads seven of them. Written by the thread that reads them they take a fifth less, of processor and of time.
const FEW_ROWS: [(&str, &str); 2] = [ON_ONE_THREAD, ("output_format_parallel_formatting", "0")];
/// The same for inserts of few rows: 6.2 ms instead of 7.4 ms.
const FEW_ROWS_IN: (&str, &str) = ("input_format_parallel_parsing", "0");
/// Such an answer comes in blocks of so many rows: with the engine's 65,409 one of wide states would take hundreds of megabytes where
/// it is decoded.
const BLOCK_ROWS: (&str, &str) = ("max_block_size", "8192");

/// One database of a ClickHouse server. Clones share their connections.
#[derive(Clone)]
pub struct Store {
    pub(super) client: Client,
    url: String,
    database: String,
    pub(super) ids: Ids,
}

/// What a statement gave.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The rows, in the format asked for.
    pub body: Bytes,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({}, {})", self.url, self.database)
    }
}

impl Store {
    /// The configured one. Nothing is sent yet.
    pub fn new(config: &ClickHouseConfig) -> Self {
        let url = config.url.to_string();
        let client = Client::default()
            .with_url(&url)
            .with_user(&config.user)
            .with_password(config.password.reveal())
            .with_setting("async_insert", "0")
            // Tables are partitioned by month, and late events may be of any: ClickHouse would refuse more than 100 at once.
            .with_setting("max_partitions_per_insert_block", "0");
        Self {
            client,
            url,
            database: config.database.clone(),
            ids: Ids::new(),
        }
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Its configured address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it answers at all, within seconds.
    ///
    /// # Errors
    /// It does not, or not with a plain answer.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let doing = "answer";
        let asked = self.client.query("SELECT 1").fetch_one::<u8>();
        self.within(PROBE, doing, asked).await.map(|_| ())
    }

    /// What its clock says, in milliseconds since 1970.
    ///
    /// # Errors
    /// It does not answer within seconds, or not with a plain answer.
    pub async fn clock(&self) -> Result<i64, StoreError> {
        let asked = self.client.query("SELECT toUnixTimestamp64Milli(now64(3))");
        self.within(PROBE, "tell what time it is", asked.fetch_one::<i64>())
            .await
    }

    /// Makes the database, the control tables and those of the views, where they are not there yet. Control tables of an
    /// earlier build get the columns that they lack. What the definitions say is kept.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn create_tables(&self, definitions: &Definitions) -> Result<(), StoreError> {
        self.execute("create its database", &tables::create_database(&self.database))
            .await?;
        let of_views = definitions.views.iter().flat_map(view_tables);
        for table in control_tables().into_iter().chain(of_views) {
            let doing = format!("create table {}", table.name);
            self.execute(&doing, &table.create(&self.database)).await?;
        }
        self.upgrade(&control_tables()).await?;
        self.record_rules(&definitions.datasets).await?;
        self.record_definitions(definitions).await
    }

    /// Runs SQL that gives no rows.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn execute(&self, doing: &str, sql: &str) -> Result<(), StoreError> {
        let id = self.ids.next();
        // `query_raw`: SQL is sent as it is, a question mark in it is no placeholder.
        let asked = self.client.query_raw(sql).with_setting(ID, &id).execute();
        self.or_ended(id, self.within(PATIENCE, doing, asked).await)
    }

    /// The same for what may take minutes: a delete that is waited for.
    pub(super) async fn execute_for_long(&self, doing: &str, sql: &str) -> Result<(), StoreError> {
        self.within(LONG_PATIENCE, doing, self.client.query_raw(sql).execute())
            .await
    }

    /// Inserts the batches as one statement. Safe to send again.
    ///
    /// # Errors
    /// ClickHouse's; [`StoreError::Rows`] for batches of different schemas.
    pub async fn insert(&self, table: &str, batches: &[RecordBatch]) -> Result<(), StoreError> {
        let Some(first) = batches.first() else {
            return Ok(());
        };
        let columns: Vec<_> = first
            .schema_ref()
            .fields()
            .iter()
            .map(|field| quote::identifier(field.name()))
            .collect();
        let body = arrow_stream(batches).map_err(|source| StoreError::Rows {
            table: table.to_owned(),
            source,
        })?;
        let sql = format!(
            "INSERT INTO {} ({}) FORMAT ArrowStream",
            quote::table(&self.database, table),
            columns.join(", ")
        );
        let id = self.ids.next();
        let insert = self.client.insert_formatted_with(sql).with_setting(ID, &id);
        let mut insert = insert.with_timeouts(Some(PATIENCE), Some(PATIENCE));
        let sent = async {
            insert.send(Bytes::from(body)).await?;
            insert.end().await
        };
        let doing = format!("insert into {table}");
        self.or_ended(id, self.within(INSERT_PATIENCE, &doing, sent).await)
    }

    /// Runs a statement of `shared_schemas::store`; the rows in that ClickHouse format, as in `JSONCompact` or
    /// `ArrowStream`.
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn answer(&self, statement: &Statement, format: &str) -> Result<Answer, StoreError> {
        let id = self.ids.next();
        let query = self.query(statement, &id, format);
        let collected = async { query.fetch_bytes(format)?.collect().await };
        let body = self.within(ANSWER_PATIENCE, ANSWERS, collected).await;
        Ok(Answer {
            body: self.or_ended(id, body)?,
        })
    }

    /// The same for a statement that may take long: it is given up where nothing moves any more, see [`Pace`].
    ///
    /// # Errors
    /// ClickHouse's.
    pub async fn answer_at_length(
        &self,
        statement: &Statement,
        format: &str,
        pace: Pace,
    ) -> Result<Answer, StoreError> {
        let mut pieces = self.begin_at_length(statement, format, pace)?;
        let mut body = BytesMut::new();
        while let Some(bytes) = pieces.next().await? {
            body.extend_from_slice(&bytes);
        }
        Ok(Answer { body: body.freeze() })
    }

    pub(super) fn query(&self, statement: &Statement, id: &str, format: &str) -> Query {
        let mut query = self.client.query_raw(&statement.sql).with_setting(ID, id);
        if format.starts_with(ARROW) {
            for (name, value) in [ON_ONE_THREAD, BLOCK_ROWS] {
                query = query.with_setting(name, value);
            }
        }
        for (name, value) in &statement.settings {
            query = query.with_setting(*name, *value);
        }
        for (name, value) in &statement.parameters {
            query = query.with_setting(format!("param_{name}"), value);
        }
        query
    }

    /// The same; a statement that was given up is ended on the server too.
    fn or_ended<T>(&self, id: String, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(done, Err(StoreError::Slow { .. })) {
            self.end(id);
        }
        done
    }

    /// Rows of a control table.
    pub(super) async fn rows<T: RowOwned + RowRead>(
        &self,
        doing: &str,
        sql: &str,
        parameters: &[(&str, String)],
    ) -> Result<Vec<T>, StoreError> {
        let id = self.ids.next();
        let mut query = self.client.query(sql).with_setting(ID, &id);
        for (name, value) in FEW_ROWS {
            query = query.with_setting(name, value);
        }
        let query = parameters
            .iter()
            .fold(query, |query, (name, value)| query.param(name, value));
        self.or_ended(id, self.within(PATIENCE, doing, query.fetch_all::<T>()).await)
    }

    /// Inserts rows into a control table as one statement. Safe to send again.
    pub(super) async fn record<T>(&self, table: &str, rows: &[T]) -> Result<(), StoreError>
    where
        T: RowOwned + RowWrite,
    {
        if rows.is_empty() {
            return Ok(());
        }
        let sent = async {
            let name = quote::table(&self.database, table);
            let (setting, value) = FEW_ROWS_IN;
            let insert = self.client.insert_unescaped::<T>(&name).await?;
            let insert = insert.with_setting(setting, value);
            let mut insert = insert.with_timeouts(Some(PATIENCE), Some(PATIENCE));
            for row in rows {
                insert.write(row).await?;
            }
            insert.end().await
        };
        self.within(INSERT_PATIENCE, &format!("insert into {table}"), sent)
            .await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        doing: &str,
        asked: impl Future<Output = clickhouse::error::Result<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(clickhouse::error::Error::TimedOut)) => Err(StoreError::Slow {
                doing: doing.to_owned(),
                limit: PATIENCE,
            }),
            Ok(Err(error)) => Err(StoreError::new(&self.url, doing, error)),
            Err(_) => Err(StoreError::Slow {
                doing: doing.to_owned(),
                limit,
            }),
        }
    }
}
