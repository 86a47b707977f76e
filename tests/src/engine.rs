//! Talks to a ClickHouse over plain HTTP, as the layers will: statements with parameters, inserts of Arrow streams.

use anyhow::{Context, ensure};
use arrow::array::RecordBatch;
use shared_schemas::store::{Statement, Table, arrow_stream, control_tables, quote, tables};

/// One database of a server.
#[derive(Debug, Clone)]
pub struct Engine {
    http: reqwest::Client,
    url: String,
    /// The database's name.
    pub database: String,
}

impl Engine {
    /// A database with the control tables and these.
    pub async fn create(url: &str, database: &str, of_views: &[Table]) -> anyhow::Result<Self> {
        let engine = Self {
            http: reqwest::Client::new(),
            url: url.to_owned(),
            database: database.to_owned(),
        };
        engine.execute(&tables::create_database(database)).await?;
        for table in control_tables().iter().chain(of_views) {
            engine.execute(&table.create(database)).await?;
        }
        Ok(engine)
    }

    /// The same database after the server came back at another address.
    pub fn moved(&self, url: &str) -> Self {
        Self {
            http: reqwest::Client::new(),
            url: url.to_owned(),
            database: self.database.clone(),
        }
    }

    /// Runs SQL without parameters; the answer's text.
    pub async fn execute(&self, sql: &str) -> anyhow::Result<String> {
        self.send(&[], sql.to_owned().into_bytes()).await
    }

    /// Runs a statement; the answer as tab-separated lines.
    pub async fn run(&self, statement: &Statement) -> anyhow::Result<Vec<String>> {
        let mut query: Vec<(String, String)> = statement
            .settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        query.extend(
            statement
                .parameters
                .iter()
                .map(|(name, value)| (format!("param_{name}"), value.clone())),
        );
        query.push(("default_format".to_owned(), "TabSeparated".to_owned()));
        let text = self.send(&query, statement.sql.clone().into_bytes()).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Inserts batches as one statement.
    pub async fn insert(&self, table: &str, batches: &[RecordBatch], settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let columns: Vec<_> = batches
            .first()
            .map(|batch| {
                batch
                    .schema()
                    .fields()
                    .iter()
                    .map(|field| quote::identifier(field.name()))
                    .collect()
            })
            .unwrap_or_default();
        let table = quote::table(&self.database, table);
        let sql = format!("INSERT INTO {table} ({}) FORMAT ArrowStream", columns.join(", "));
        let mut query = vec![("query".to_owned(), sql), ("async_insert".to_owned(), "0".to_owned())];
        query.extend(
            settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        self.send(&query, arrow_stream(batches)?).await?;
        Ok(())
    }

    async fn send(&self, query: &[(String, String)], body: Vec<u8>) -> anyhow::Result<String> {
        let mut url = reqwest::Url::parse(&self.url)?;
        url.query_pairs_mut().extend_pairs(query);
        let response = self
            .http
            .post(url)
            .body(body)
            .send()
            .await
            .context("ClickHouse cannot be reached")?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "{text}");
        Ok(text)
    }
}
