//! Plain HTTP, as curl, Grafana and other languages' clients speak it.

use std::io::{Read as _, Write as _};

use highwater_tests::clickhouse::ClickHouse;
use reqwest::StatusCode;

use super::{Answer, post, read, run};

async fn get(url: &str) -> anyhow::Result<Answer> {
    read(reqwest::get(url).await?).await
}

#[tokio::test]
async fn health_checks_and_unknown_paths() -> anyhow::Result<()> {
    let server = ClickHouse::start_with(&["--display-name", "here"], None)?;
    for path in ["/", "/ping", "/replicas_status"] {
        let answer = get(&format!("{}{path}", server.url())).await?;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (StatusCode::OK, "Ok.\n"),
            "{path}"
        );
        assert_eq!(answer.header("X-ClickHouse-Server-Display-Name"), "here");
    }
    assert_eq!(
        get(&format!("{}/nosuch", server.url())).await?.status,
        StatusCode::NOT_FOUND
    );
    Ok(())
}

#[tokio::test]
async fn a_query_in_the_address_the_body_or_both() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    assert_eq!(get(&format!("{url}/?query=SELECT%201")).await?.text(), "1\n");
    assert_eq!(run(url, "SELECT 1;").await?, "1");
    assert_eq!(post(&format!("{url}/?query=SELECT"), "2").await?.text(), "2\n");
    assert_eq!(
        post(
            &format!("{url}/?database=system&param_x=4"),
            "SELECT {x:UInt8} FROM one"
        )
        .await?
        .text(),
        "4\n"
    );
    let answer = post(
        &format!("{url}/?query_id=mine"),
        "SELECT number FROM numbers(3) FORMAT JSONEachRow",
    )
    .await?;
    assert_eq!(answer.header("X-ClickHouse-Query-Id"), "mine");
    assert_eq!(answer.header("X-ClickHouse-Format"), "JSONEachRow");
    assert_eq!(
        answer.header("X-ClickHouse-Timezone"),
        run(url, "SELECT timezone()").await?
    );
    assert!(
        answer.header("X-ClickHouse-Summary").contains("\"read_rows\":\"3\""),
        "{answer:?}"
    );
    Ok(())
}

#[tokio::test]
async fn every_shape_of_select_finds_its_outlet() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    for (sql, expected) in [
        ("(SELECT 1) SETTINGS max_threads = 1", "1"),
        ("SELECT 1 SETTINGS max_threads = 1 FORMAT CSV", "1"),
        ("SELECT 1 FORMAT CSV SETTINGS max_threads = 1", "1"),
        ("SELECT 1 UNION ALL SELECT 1 -- the end", "1\n1"),
        ("WITH 2 AS x SELECT x /* FORMAT JSON */", "2"),
        ("FROM numbers(1) SELECT number", "0"),
        ("SELECT format('{}', 'a') AS format", "a"),
        ("((SELECT 3))", "3"),
        ("SELECT 1 AS a ORDER BY a LIMIT 1 WITH TIES", "1"),
        ("SELECT 1 INTERSECT SELECT 1", "1"),
        ("SHOW DATABASES LIKE 'default'", "default"),
        ("EXISTS TABLE system.one", "1"),
        (
            "DESCRIBE TABLE system.one FORMAT CSV",
            "\"dummy\",\"UInt8\",\"\",\"\",\"\",\"\",\"\"",
        ),
        ("EXPLAIN SYNTAX SELECT 1", "SELECT 1\nFROM system.one"),
    ] {
        assert_eq!(
            run(server.url(), sql).await.unwrap_or_else(|e| e.to_string()),
            expected,
            "{sql}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn formats_by_header_and_by_parameter() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let http = reqwest::Client::new();
    let header = http
        .post(server.url())
        .header("X-ClickHouse-Format", "JSONCompact")
        .body("SELECT 1 AS a")
        .send();
    let answer = read(header.await?).await?;
    assert_eq!(answer.header("content-type"), "application/json; charset=UTF-8");
    assert!(answer.text().contains("\"rows\": 1"), "{}", answer.text());
    assert_eq!(
        post(
            &format!("{}/?default_format=CSVWithNames", server.url()),
            "SELECT 'x' AS a"
        )
        .await?
        .text(),
        "\"a\"\n\"x\"\n"
    );
    // whole documents, not one for each block
    for (format, begins, ends) in [
        ("Parquet", &b"PAR1"[..], &b"PAR1"[..]),
        ("JSON", b"{", b"}\n"),
        ("Arrow", b"ARROW1", b"ARROW1"),
    ] {
        let answer = post(
            server.url(),
            format!("SELECT number FROM numbers(700000) FORMAT {format}"),
        )
        .await?;
        assert!(
            answer.body.starts_with(begins) && answer.body.ends_with(ends),
            "{format}"
        );
    }
    Ok(())
}

fn unpacked(coding: &str, packed: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    match coding {
        "gzip" => flate2::read::GzDecoder::new(packed).read_to_end(&mut out)?,
        "deflate" => flate2::read::ZlibDecoder::new(packed).read_to_end(&mut out)?,
        "zstd" => zstd::stream::read::Decoder::new(packed)?.read_to_end(&mut out)?,
        _ => lz4_flex::frame::FrameDecoder::new(packed).read_to_end(&mut out)?,
    };
    Ok(out)
}

fn packed(coding: &str, data: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(match coding {
        "gzip" => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            to.write_all(data)?;
            to.finish()?
        }
        "deflate" => {
            let mut to = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            to.write_all(data)?;
            to.finish()?
        }
        "zstd" => zstd::bulk::compress(data, 1)?,
        _ => {
            let mut to = lz4_flex::frame::FrameEncoder::new(Vec::new());
            to.write_all(data)?;
            to.finish()?
        }
    })
}

#[tokio::test]
async fn bodies_are_packed_as_http_says() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    run(url, "CREATE DATABASE db").await?;
    run(url, "CREATE TABLE db.t (a UInt64) ENGINE = MergeTree ORDER BY a").await?;
    let http = reqwest::Client::new();
    for coding in ["gzip", "deflate", "zstd", "lz4"] {
        for rows in [10, 400_000] {
            let sql = format!("SELECT number FROM numbers({rows}) FORMAT RowBinary");
            let response = http
                .post(url)
                .header("Accept-Encoding", coding)
                .body(sql)
                .send()
                .await?;
            let answer = read(response).await?;
            assert_eq!(answer.header("content-encoding"), coding);
            let expected: Vec<u8> = (0..rows).flat_map(u64::to_le_bytes).collect();
            assert!(unpacked(coding, &answer.body)? == expected, "{coding} {rows}");

            run(url, "TRUNCATE TABLE db.t").await?;
            let insert = format!("{url}/?query=INSERT%20INTO%20db.t%20FORMAT%20RowBinary");
            let body = packed(coding, &expected)?;
            let answer = read(
                http.post(insert)
                    .header("Content-Encoding", coding)
                    .body(body)
                    .send()
                    .await?,
            )
            .await?;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
            assert_eq!(
                run(url, "SELECT count(), sum(a) FROM db.t").await?,
                format!("{rows}\t{}", rows * (rows - 1) / 2)
            );
        }
    }
    let off = http
        .post(format!("{url}/?enable_http_compression=0"))
        .header("Accept-Encoding", "gzip")
        .body("SELECT 1");
    assert_eq!(read(off.send().await?).await?.text(), "1\n");
    let garbage = http
        .post(url)
        .header("Content-Encoding", "zstd")
        .body("SELECT 1")
        .send()
        .await?;
    assert_eq!(read(garbage).await?.header("X-ClickHouse-Exception-Code"), "271");
    Ok(())
}

#[tokio::test]
async fn data_comes_with_or_after_its_statement() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    run(url, "CREATE DATABASE db").await?;
    run(
        url,
        "CREATE TABLE db.t (a UInt64, s String) ENGINE = MergeTree ORDER BY a",
    )
    .await?;
    let binary = [&1_u64.to_le_bytes()[..], b"\x02\n'", &2_u64.to_le_bytes(), b"\x00"].concat();
    let arrow = post(
        url,
        "SELECT number + 5 AS a, 'arrow' AS s FROM numbers(2) FORMAT ArrowStream",
    )
    .await?
    .body;
    let http = reqwest::Client::new();
    let by_header = http
        .post(format!("{url}/?query=INSERT%20INTO%20db.t"))
        .header("X-ClickHouse-Format", "CSV")
        .body("9,x");
    for (answer, rows) in [
        (
            post(
                &format!("{url}/?query=INSERT%20INTO%20db.t%20FORMAT%20RowBinary"),
                binary.clone(),
            )
            .await?,
            2,
        ),
        (
            post(
                url,
                [b"INSERT INTO db.t (a, s) FORMAT RowBinary\n", &binary[..]].concat(),
            )
            .await?,
            2,
        ),
        (
            post(
                url,
                [
                    b"INSERT INTO db.t SETTINGS max_threads = 1 FORMAT ArrowStream ",
                    &arrow[..],
                ]
                .concat(),
            )
            .await?,
            2,
        ),
        (
            post(
                url,
                "INSERT INTO db.t FORMAT JSONEachRow {\"a\": 7, \"s\": \"it's\"} {\"a\": 8}",
            )
            .await?,
            2,
        ),
        (
            post(url, "INSERT INTO db.t VALUES (1, 'a;b'), (1 + 1, lower('B'));").await?,
            2,
        ),
        (
            post(&format!("{url}/?query=INSERT%20INTO%20db.t%20VALUES"), "(3, '')").await?,
            1,
        ),
        (
            post(
                &format!("{url}/?param_x=4"),
                "INSERT INTO db.t SELECT number, 's' FROM numbers({x:UInt64})",
            )
            .await?,
            4,
        ),
        (read(by_header.send().await?).await?, 1),
        (
            post(&format!("{url}/?query=INSERT%20INTO%20db.t%20FORMAT%20RowBinary"), "").await?,
            0,
        ),
    ] {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let summary = answer.header("X-ClickHouse-Summary");
        assert!(summary.contains(&format!("\"written_rows\":\"{rows}\"")), "{summary}");
    }
    assert_eq!(run(url, "SELECT count(), uniq(s) FROM db.t").await?, "16\t8");
    Ok(())
}

#[tokio::test]
async fn errors_have_clickhouses_code_text_and_status() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    for (address, sql, status, code, name) in [
        ("/", "SELECT * FROM default.nosuch", 404, "60", "(UNKNOWN_TABLE)"),
        ("/", "SELECT * FROM nosuch.t", 404, "81", "(UNKNOWN_DATABASE)"),
        ("/?database=nosuch", "SELECT 1", 404, "81", "(UNKNOWN_DATABASE)"),
        ("/", "SELEC 1", 400, "62", "(SYNTAX_ERROR)"),
        ("/", "SELECT 1; SELECT 2", 400, "62", "Multi-statements are not allowed"),
        ("/", "SELECT 'a", 400, "62", "(SYNTAX_ERROR)"),
        ("/?nosuch=1", "SELECT 1", 404, "115", "(UNKNOWN_SETTING)"),
        ("/", "SELECT 1 FORMAT Nosuch", 404, "73", "(UNKNOWN_FORMAT)"),
        ("/", "SELECT 1 + 'a'", 500, "43", "(ILLEGAL_TYPE_OF_ARGUMENT)"),
        (
            "/?max_execution_time=0.2",
            super::ENDLESS,
            408,
            "159",
            "(TIMEOUT_EXCEEDED)",
        ),
        ("/", "SELECT throwIf(1, 'no')", 500, "395", "no"),
    ] {
        let answer = post(&format!("{url}{address}"), sql).await?;
        let told = (answer.status.as_u16(), answer.header("X-ClickHouse-Exception-Code"));
        assert_eq!(told, (status, code), "{sql}: {}", answer.text());
        let begin = format!("Code: {code}. DB::Exception: ");
        assert!(
            answer.text().starts_with(&begin) && answer.text().contains(name),
            "{sql}: {}",
            answer.text()
        );
        assert!(answer.text().contains("(version 26."), "{}", answer.text());
    }
    let write = get(&format!("{url}/?query=CREATE%20DATABASE%20x")).await?;
    assert_eq!(write.header("X-ClickHouse-Exception-Code"), "164", "{}", write.text());
    let compressed = post(
        &format!("{url}/?decompress=1"),
        "SELECT 1 plainly and not in blocks of clickhouse",
    )
    .await?;
    assert_eq!(
        compressed.header("X-ClickHouse-Exception-Code"),
        "271",
        "{}",
        compressed.text()
    );
    Ok(())
}

/// clickhouse-go, and with it Grafana's plugin, names its version of the protocol and reads no other form.
#[tokio::test]
async fn native_rows_in_the_protocol_of_the_client() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = format!("{}/?default_format=Native&client_protocol_version=", server.url());
    let header = [1, 0, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0];
    let (old, new) = (b"\x01\x01\x01a\x05UInt8\x07", b"\x01\x01\x01a\x05UInt8\x00\x07");
    assert_eq!(post(&format!("{url}0"), "SELECT 7 AS a").await?.body, old);
    assert_eq!(
        post(&format!("{url}54405"), "SELECT 7 AS a").await?.body,
        [&header[..], old].concat()
    );
    assert_eq!(
        post(&format!("{url}54460"), "SELECT 7 AS a").await?.body,
        [&header[..], new].concat()
    );
    // many blocks, in many pieces: each has grown by its header and one byte a column
    let sql = "SELECT number, toString(number) AS s, [s, s] AS l, map(s, number) AS m FROM numbers(300000)";
    let (old, new) = (
        post(&format!("{url}0"), sql).await?,
        post(&format!("{url}54460"), sql).await?,
    );
    let blocks = new.body.windows(8).filter(|bytes| *bytes == header).count();
    assert!(blocks > 1);
    assert_eq!(new.body.len(), old.body.len() + blocks * (8 + 4));
    let state = post(&format!("{url}54460"), "SELECT uniqState(1)").await?;
    assert_eq!(state.header("X-ClickHouse-Exception-Code"), "48", "{}", state.text());
    Ok(())
}

#[tokio::test]
async fn an_error_in_the_middle_cuts_the_response() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let sql = "SELECT throwIf(number = 3000000, 'too far') AS x, number FROM numbers(4000000) SETTINGS max_threads = 1";
    let mut response = reqwest::Client::new().post(server.url()).body(sql).send().await?;
    assert_eq!(response.status(), StatusCode::OK);
    let tag = response.headers()["X-ClickHouse-Exception-Tag"].to_str()?.to_owned();
    let mut body = Vec::new();
    let cut = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(cut, "the response ended as if it were whole");
    let end = String::from_utf8_lossy(&body[body.len().saturating_sub(2000)..]).into_owned();
    assert!(
        end.contains("too far") && end.ends_with(&format!(" {tag}\r\n__exception__\r\n")),
        "{end}"
    );
    // and where the client waits for the end it is an error from the start
    let answer = post(&format!("{}/?wait_end_of_query=1", server.url()), sql).await?;
    assert_eq!(answer.header("X-ClickHouse-Exception-Code"), "395");
    let answer = post(
        &format!("{}/?wait_end_of_query=1", server.url()),
        "SELECT number FROM numbers(500000)",
    )
    .await?;
    assert!(
        answer
            .header("X-ClickHouse-Summary")
            .contains("\"read_rows\":\"500000\""),
        "{answer:?}"
    );
    Ok(())
}

#[tokio::test]
async fn sessions_keep_what_they_set_and_no_more() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let url = server.url();
    let a = format!("{url}/?session_id=a");
    assert_eq!(
        get(&format!("{url}/?session_id=a&session_check=1&query=SELECT%201"))
            .await?
            .header("X-ClickHouse-Exception-Code"),
        "372"
    );
    run(&a, "CREATE TEMPORARY TABLE mine (x UInt8)").await?;
    run(&a, "INSERT INTO mine VALUES (1), (2)").await?;
    run(&a, "SET max_threads = 3").await?;
    assert_eq!(
        run(&a, "SELECT sum(x), getSetting('max_threads') FROM mine").await?,
        "3\t3"
    );
    // parameters of an address are for that request alone
    let with = format!("{a}&max_threads=5&max_block_size=77&database=system");
    let show = "SELECT getSetting('max_threads'), getSetting('max_block_size'), currentDatabase()";
    assert_eq!(run(&with, show).await?, "5\t77\tsystem");
    let after = run(&a, show).await?;
    assert!(
        after.starts_with("3\t") && !after.contains("77") && after.ends_with("\tdefault"),
        "{after}"
    );
    // an error, before rows and after them, ends the query and not the session
    for number in [3, 3_000_000] {
        let sql = format!("SELECT throwIf(number = {number}), number FROM numbers(4000000) SETTINGS max_threads = 1");
        assert!(post(&a, sql).await.is_err() || number == 3);
        until_free(&a).await?;
    }
    // another session, and no session, know nothing of it
    assert!(
        run(&format!("{url}/?session_id=b"), "SELECT * FROM mine")
            .await
            .is_err()
    );
    assert!(run(url, "SELECT * FROM mine").await.is_err());
    // one request at a time
    let (slow, locked) = tokio::join!(run(&a, "SELECT sleepEachRow(2.5)"), async {
        super::until(
            url,
            "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleepEach%'",
            "1",
        )
        .await?;
        post(&a, "SELECT 1").await
    });
    slow?;
    assert_eq!(locked?.header("X-ClickHouse-Exception-Code"), "373");
    run(&format!("{a}&close_session=1"), "SELECT 1").await?;
    assert!(run(&a, "SELECT * FROM mine").await.is_err());
    Ok(())
}

/// Waits until a session is not locked.
async fn until_free(session: &str) -> anyhow::Result<()> {
    let ask = || async { Ok(post(session, "SELECT 1").await?.text()) };
    highwater_tests::clickhouse::until(ask, |answer| answer == "1\n").await?;
    Ok(())
}

#[tokio::test]
async fn curl_speaks_to_it() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let curl = |arguments: &[&str]| {
        let output = std::process::Command::new("curl")
            .args(["-sS", "--max-time", "60"])
            .args(arguments)
            .output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(curl(&[server.url(), "-d", "SELECT 1"])?, "1\n");
    assert_eq!(
        curl(&[
            server.url(),
            "--compressed",
            "-d",
            "SELECT sum(number) FROM numbers(10)"
        ])?,
        "45\n"
    );
    assert_eq!(curl(&[&format!("{}/?query=SELECT%202", server.url())])?, "2\n");
    assert_eq!(
        curl(&["-I", &format!("{}/ping", server.url())])?.lines().next(),
        Some("HTTP/1.1 200 OK")
    );
    Ok(())
}
