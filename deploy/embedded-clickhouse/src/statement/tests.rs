//! Statements as clients write them, and what the engine is given.

use proptest::prelude::*;

use super::*;

fn read_whole(text: &str) -> Result<Statement, Exception> {
    match read(text.as_bytes(), 0, true)? {
        Reading::Whole(statement) => Ok(statement),
        Reading::Unfinished => panic!("unfinished: {text}"),
    }
}

fn engine(text: &str) -> String {
    let statement = read_whole(text).expect(text);
    let inlet = match &statement.class {
        Class::Inserts(insert) => insert.format.clone(),
        _ => None,
    };
    let inlet = inlet.as_deref().map(|format| ("IN", format));
    let outlet = (statement.class == Class::Rows).then_some("OUT");
    let sql = String::from_utf8(statement.for_engine(text.as_bytes(), outlet, inlet)).expect("text");
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn data(text: &str) -> (String, String) {
    let statement = read_whole(text).expect(text);
    let Class::Inserts(insert) = statement.class else {
        panic!("no insert: {text}")
    };
    (insert.format.unwrap_or_default(), text[insert.data..].to_owned())
}

#[test]
fn rows_leave_through_the_outlet() {
    for (text, expected) in [
        ("SELECT 1", "SELECT 1 INTO OUTFILE 'OUT' APPEND"),
        ("SELECT 1;  ", "SELECT 1 INTO OUTFILE 'OUT' APPEND"),
        ("SELECT 1 FORMAT JSON", "SELECT 1 INTO OUTFILE 'OUT' APPEND FORMAT JSON"),
        (
            "SELECT 1 format JSON settings a = 1;",
            "SELECT 1 INTO OUTFILE 'OUT' APPEND format JSON settings a = 1",
        ),
        (
            "SELECT 1 SETTINGS a=1 FORMAT JSON",
            "SELECT 1 SETTINGS a=1 INTO OUTFILE 'OUT' APPEND FORMAT JSON",
        ),
        ("SELECT 1 -- FORMAT JSON", "SELECT 1 INTO OUTFILE 'OUT' APPEND"),
        (
            "(SELECT 1) SETTINGS a=1",
            "(SELECT 1) INTO OUTFILE 'OUT' APPEND SETTINGS a=1",
        ),
        ("WITH 1 AS x SELECT x", "WITH 1 AS x SELECT x INTO OUTFILE 'OUT' APPEND"),
        (
            "SELECT format('{}', 'x') AS format",
            "SELECT format('{}', 'x') AS format INTO OUTFILE 'OUT' APPEND",
        ),
        (
            "SELECT a FROM format t",
            "SELECT a FROM format t INTO OUTFILE 'OUT' APPEND",
        ),
        (
            "SELECT a.format b FROM t",
            "SELECT a.format b FROM t INTO OUTFILE 'OUT' APPEND",
        ),
        (
            "SELECT (SELECT 1 FORMAT x)",
            "SELECT (SELECT 1 FORMAT x) INTO OUTFILE 'OUT' APPEND",
        ),
        ("SHOW TABLES FORMAT JSON", "SHOW TABLES FORMAT JSON"),
    ] {
        assert_eq!(engine(text), expected, "{text}");
    }
}

#[test]
fn the_format_is_found() {
    let format = |text| read_whole(text).expect(text).format;
    assert_eq!(format("SELECT 1 FORMAT JSONEachRow").as_deref(), Some("JSONEachRow"));
    assert_eq!(format("SELECT 1 FORMAT `TSV`").as_deref(), Some("TSV"));
    assert_eq!(format("SELECT 'FORMAT x'"), None);
}

#[test]
fn data_begins_where_clickhouse_says() {
    for (text, format, rest) in [
        ("INSERT INTO t FORMAT RowBinary\n\n\0'", "RowBinary", "\n\0'"),
        ("INSERT INTO t FORMAT TSV  a\tb", "TSV", "a\tb"),
        ("INSERT INTO t FORMAT CSV \r\n 1,2", "CSV", " 1,2"),
        ("INSERT INTO t FORMAT CSV;\n1", "CSV", "1"),
        (
            "insert into db.t (a, `format`) format JSONEachRow {\"a\":\"it's\"}",
            "JSONEachRow",
            "{\"a\":\"it's\"}",
        ),
        ("INSERT INTO t VALUES (1, 'x'), (2, '')", "Values", " (1, 'x'), (2, '')"),
        ("INSERT INTO values VALUES(1)", "Values", "(1)"),
        ("INSERT INTO db.select (a) VALUES (1)", "Values", " (1)"),
        (
            "INSERT INTO TABLE FUNCTION null('a Int64') VALUES (1)",
            "Values",
            " (1)",
        ),
        ("INSERT INTO t SETTINGS async_insert=0 VALUES (1)", "Values", " (1)"),
        ("INSERT INTO t FORMAT RowBinary", "RowBinary", ""),
        ("/* c */ INSERT -- x\n INTO t FORMAT TSV\n'", "TSV", "'"),
    ] {
        assert_eq!(data(text), (format.to_owned(), rest.to_owned()), "{text}");
    }
}

#[test]
fn an_insert_reads_its_data_from_the_inlet() {
    assert_eq!(
        engine("INSERT INTO db.t (a, b) SETTINGS x=1 FORMAT TSV\n1\t2"),
        "INSERT INTO db.t (a, b) FROM INFILE 'IN' COMPRESSION 'none' SETTINGS x=1 FORMAT TSV"
    );
    assert_eq!(
        engine("INSERT INTO t VALUES (1)"),
        "INSERT INTO t FROM INFILE 'IN' COMPRESSION 'none' FORMAT Values"
    );
    for select in [
        "INSERT INTO t SELECT 1",
        "INSERT INTO t (a) WITH 1 AS x SELECT x",
        "INSERT INTO t (SELECT 1)",
    ] {
        assert_eq!(engine(select), select);
    }
}

#[test]
fn a_part_of_an_insert_asks_for_more() {
    for text in [
        "INSERT INTO t FORMAT",
        "INSERT INTO t FORMAT Row",
        "INSERT INTO t (a",
        "INS",
        "INSERT INTO t VAL",
        "INSERT INTO t FORMAT CSV  ",
        "SELECT 1",
        "INSERT INTO `t",
    ] {
        assert_eq!(read(text.as_bytes(), 0, false), Ok(Reading::Unfinished), "{text}");
    }
    assert!(matches!(
        read(b"INSERT INTO t FORMAT CSV\n'", 0, false),
        Ok(Reading::Whole(_))
    ));
}

#[test]
fn an_insert_in_the_address_may_leave_its_format_to_the_headers() {
    let text = b"INSERT INTO t (a, b)\n1,'x";
    let Ok(Reading::Whole(statement)) = read(text, 21, true) else {
        panic!("not whole")
    };
    let Class::Inserts(insert) = &statement.class else {
        panic!("no insert")
    };
    assert_eq!((insert.format.as_deref(), insert.data), (None, 21));
    let sql = statement.for_engine(text, None, Some(("IN", "CSV")));
    assert_eq!(
        String::from_utf8_lossy(&sql),
        "INSERT INTO t (a, b)\nFROM INFILE 'IN' COMPRESSION 'none'\n\nFORMAT CSV"
    );
    // but not where the body goes on with the statement
    let text = b"INSERT INTO t (a, b)\nVALUES (1)";
    let Ok(Reading::Whole(statement)) = read(text, 21, true) else {
        panic!("not whole")
    };
    assert!(matches!(statement.class, Class::Inserts(Insert { format: Some(format), .. }) if format == "Values"));
}

#[test]
fn what_reaches_beyond_the_tables_is_refused() {
    for (text, expected) in [
        ("SELECT 1 INTO OUTFILE '/tmp/x'", code::INTO_OUTFILE_NOT_ALLOWED),
        (
            "SELECT $$'$$ INTO /* */ OUTFILE '/tmp/x' -- '",
            code::INTO_OUTFILE_NOT_ALLOWED,
        ),
        (
            "INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV",
            code::ACCESS_DENIED,
        ),
        ("SELECT file('/etc/passwd')", code::ACCESS_DENIED),
        ("SELECT `file` ('/etc/passwd')", code::ACCESS_DENIED),
        ("SELECT `f\\x69le`('/etc/passwd')", code::ACCESS_DENIED),
        ("SELECT * APPLY(file) FROM t", code::ACCESS_DENIED),
        ("SELECT * APPLY file FROM t", code::ACCESS_DENIED),
        ("SELECT * FROM file('/etc/passwd')", code::ACCESS_DENIED),
        ("INSERT INTO FUNCTION file('/tmp/x') VALUES (1)", code::ACCESS_DENIED),
        (
            "CREATE TABLE t (a Int64) ENGINE=MergeTree ORDER BY a SETTINGS disk=disk(type='local')",
            code::ACCESS_DENIED,
        ),
        ("ATTACH TABLE t FROM '/etc' (a Int64) ENGINE=Log", code::ACCESS_DENIED),
        ("CREATE DATABASE d ENGINE = SQLite('x')", code::ACCESS_DENIED),
        ("SELECT 1; DROP TABLE t", code::SYNTAX_ERROR),
        ("SELECT 'a", code::SYNTAX_ERROR),
        ("SELECT \u{2018}'\u{2019} INTO OUTFILE 'x' -- '", code::SYNTAX_ERROR),
        ("exit;", code::SYNTAX_ERROR),
        (" ;", code::SYNTAX_ERROR),
        ("", code::SYNTAX_ERROR),
    ] {
        assert_eq!(read_whole(text).expect_err(text).code(), expected, "{text}");
    }
    for text in [
        "SELECT file FROM t",
        "SELECT 'INTO OUTFILE'",
        "CREATE DATABASE IF NOT EXISTS d ENGINE = Atomic",
        "CREATE DATABASE d",
        "ATTACH TABLE t",
        "SELECT profile(1)",
    ] {
        assert!(read_whole(text).is_ok(), "{text}");
    }
}

#[test]
fn ids_are_those_of_the_clients() {
    assert_eq!(
        engine("KILL QUERY WHERE query_id = 'x' SYNC"),
        "KILL QUERY WHERE Settings['stream_like_engine_insert_queue'] = 'x' SYNC"
    );
    assert!(engine("SELECT query_id FROM system.processes p").contains("FROM (SELECT * REPLACE("));
    assert_eq!(
        engine("SHOW CREATE TABLE system.processes"),
        "SHOW CREATE TABLE system.processes"
    );
}

proptest! {
    /// Whatever is sent in whatever pieces, nothing panics, and a whole statement stays what it is when more follows.
    #[test]
    fn any_text_is_read(text in "(INSERT INTO t )?(FORMAT |VALUES |SELECT |'|`|--|;|\\(|\\)|[a-z ]{1,5}|\n|\\PC){0,20}") {
        let _ = read(text.as_bytes(), 0, true);
        for cut in (0..text.len()).filter(|&i| text.is_char_boundary(i)) {
            if let Ok(Reading::Whole(early)) = read(&text.as_bytes()[..cut], 0, false) {
                prop_assert_eq!(read(text.as_bytes(), 0, true), Ok(Reading::Whole(early)));
            }
        }
    }
}
