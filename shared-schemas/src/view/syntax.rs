//! Reads one SQL expression and refuses everything that a view may not say, by shape alone.
//!
//! The forms that pass are listed one by one, so that a new release of the parser admits nothing by itself. Mistakes
//! are collected, each with its place in the text; types are checked later, by [`super::expression`].

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CastKind, CeilFloorKind, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, Ident, ObjectName, ObjectNamePart, Spanned, UnaryOperator, Value, visit_expressions_mut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use super::functions;
use crate::dataset::Dataset;
use crate::measure;
use crate::mistake::nearest;

/// Something wrong with an expression; which one is for the caller to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) at: Option<usize>,
    pub(super) what: String,
    pub(super) instead: Option<String>,
}

/// The text of one expression, to find byte offsets in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl Text<'_> {
    /// The byte offset of the parser's line and column, which count characters from 1.
    fn offset(self, location: Location) -> Option<usize> {
        let line = usize::try_from(location.line).ok()?.checked_sub(1)?;
        let column = usize::try_from(location.column).ok()?.checked_sub(1)?;
        let start: usize = self.0.split_inclusive('\n').take(line).map(str::len).sum();
        let rest = self.0.get(start..)?;
        Some(start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at))
    }

    /// A mistake at a part of the expression.
    pub(super) fn mistake(self, part: &impl Spanned, what: impl Into<String>, instead: Option<String>) -> Mistake {
        Mistake {
            at: self.offset(part.span().start),
            what: what.into(),
            instead,
        }
    }

    /// Reads the whole text as one expression. Function names come out in lower case.
    pub(super) fn parse(self) -> Result<Expr, Mistake> {
        let dialect = GenericDialect {};
        let operators = Tokenizer::new(&dialect, self.0)
            .tokenize()
            .map_or(0, |tokens| operators(&tokens));
        if operators > MOST_OPERATORS {
            return Err(Mistake {
                at: Some(0),
                what: format!("the expression has {operators} operators, at most {MOST_OPERATORS} are allowed"),
                instead: Some("`field IN (…)` for many values, or a field that the sender computes".to_owned()),
            });
        }
        let mut expr = Parser::new(&dialect)
            .try_with_sql(self.0)
            .and_then(|mut parser| {
                let expr = parser.parse_expr()?;
                let next = parser.peek_token();
                if next.token == Token::EOF {
                    Ok(expr)
                } else {
                    Err(ParserError::ParserError(format!(
                        "Expected: end of expression, found: {next}{}",
                        next.span.start
                    )))
                }
            })
            .map_err(|error| self.syntax_mistake(&error))?;
        let _: ControlFlow<()> = visit_expressions_mut(&mut expr, |part| {
            if let Expr::Function(function) = part
                && let [ObjectNamePart::Identifier(name)] = function.name.0.as_mut_slice()
            {
                name.value = name.value.to_lowercase();
                name.quote_style = None;
            }
            ControlFlow::Continue(())
        });
        Ok(expr)
    }

    fn syntax_mistake(self, error: &ParserError) -> Mistake {
        let message = match error {
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => message.as_str(),
            ParserError::RecursionLimitExceeded => "the expression is nested too deeply",
        };
        let (what, at) = match message.split_once(" at Line: ") {
            Some((what, place)) => (what, self.parse_place(place)),
            None => (message, None),
        };
        let what = if self.0.trim().is_empty() {
            "the expression is empty".to_owned()
        } else {
            sentence(what)
        };
        let at = if what.ends_with("found: EOF") {
            Some(self.0.trim_end().len())
        } else {
            at.or(Some(0))
        };
        let what = what.replace("found: EOF", "found the end");
        Mistake {
            at,
            what,
            instead: None,
        }
    }

    fn parse_place(self, place: &str) -> Option<usize> {
        let (line, column) = place.split_once(", Column: ")?;
        self.offset(Location::new(line.parse().ok()?, column.parse().ok()?))
    }
}

/// The most operators that an expression may have. Checking it takes longer than they are many, and a chain of
/// thousands is nested deeper than a stack is.
const MOST_OPERATORS: usize = 200;

fn operators(tokens: &[Token]) -> usize {
    let mut before = &Token::LParen;
    let mut count = 0;
    for token in tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))) {
        count += usize::from(match token {
            Token::Word(word) => matches!(
                word.keyword,
                Keyword::AND
                    | Keyword::OR
                    | Keyword::NOT
                    | Keyword::WHEN
                    | Keyword::IS
                    | Keyword::LIKE
                    | Keyword::BETWEEN
            ),
            // The sign of a value in a list.
            Token::Minus | Token::Plus => !matches!(before, Token::LParen | Token::Comma),
            Token::Eq
            | Token::Neq
            | Token::Lt
            | Token::Gt
            | Token::LtEq
            | Token::GtEq
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::StringConcat
            | Token::DoubleColon
            | Token::LBracket => true,
            _ => false,
        });
        before = token;
    }
    count
}

/// A library's message in our style: lower case, no full stop, first line only.
pub(super) fn sentence(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim_end_matches('.');
    let line = line
        .strip_prefix("Error during planning: ")
        .unwrap_or(line)
        .replace("Expected: ", "expected ");
    let mut letters = line.chars();
    match (letters.next(), letters.clone().next()) {
        // An acronym or a type's name keeps its capitals.
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => line.to_owned(),
    }
}

/// The parts of an expression that are expressions, for those forms that are allowed; `Err` says what it is instead.
pub(super) fn parts(expr: &Expr) -> Result<Vec<&Expr>, &'static str> {
    Ok(match expr {
        Expr::Identifier(_) | Expr::TypedString(_) => vec![],
        Expr::Value(value) => match &value.value {
            Value::Number(..) | Value::SingleQuotedString(_) | Value::Boolean(_) | Value::Null => vec![],
            Value::DoubleQuotedString(_) => return Err("text in double quotes"),
            _ => return Err("this kind of literal"),
        },
        Expr::IsFalse(e)
        | Expr::IsNotFalse(e)
        | Expr::IsTrue(e)
        | Expr::IsNotTrue(e)
        | Expr::IsNull(e)
        | Expr::IsNotNull(e)
        | Expr::IsUnknown(e)
        | Expr::IsNotUnknown(e)
        | Expr::Nested(e) => vec![e],
        Expr::IsDistinctFrom(a, b) | Expr::IsNotDistinctFrom(a, b) => vec![a, b],
        Expr::InList { expr, list, .. } => std::iter::once(expr.as_ref()).chain(list).collect(),
        Expr::Between { expr, low, high, .. } => vec![expr, low, high],
        Expr::BinaryOp { left, op, right } => match op {
            BinaryOperator::Plus
            | BinaryOperator::Minus
            | BinaryOperator::Multiply
            | BinaryOperator::Divide
            | BinaryOperator::Modulo
            | BinaryOperator::Gt
            | BinaryOperator::Lt
            | BinaryOperator::GtEq
            | BinaryOperator::LtEq
            | BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::And
            | BinaryOperator::Or
            | BinaryOperator::StringConcat => vec![left, right],
            _ => return Err("this operator"),
        },
        Expr::UnaryOp {
            op: UnaryOperator::Not | UnaryOperator::Minus | UnaryOperator::Plus,
            expr,
        } => vec![expr],
        Expr::Like {
            any: false,
            expr,
            pattern,
            ..
        }
        | Expr::ILike {
            any: false,
            expr,
            pattern,
            ..
        } => {
            vec![expr, pattern]
        }
        Expr::Cast {
            kind: CastKind::Cast | CastKind::TryCast | CastKind::DoubleColon,
            expr,
            array: false,
            format: None,
            ..
        } => vec![expr],
        Expr::Extract { expr, .. } => vec![expr],
        Expr::Ceil { expr, field } | Expr::Floor { expr, field } => match field {
            CeilFloorKind::DateTimeField(unit)
                if *unit == datafusion::sql::sqlparser::ast::DateTimeField::NoDateTime =>
            {
                vec![expr]
            }
            _ => return Err("rounding to a unit"),
        },
        Expr::Position { expr, r#in } => vec![expr, r#in],
        Expr::Substring {
            expr,
            substring_from,
            substring_for,
            ..
        } => std::iter::once(expr)
            .chain(substring_from)
            .chain(substring_for)
            .map(AsRef::as_ref)
            .collect(),
        Expr::Trim {
            expr,
            trim_what,
            trim_characters: None,
            ..
        } => std::iter::once(expr).chain(trim_what).map(AsRef::as_ref).collect(),
        Expr::Interval(interval) => match interval.value.as_ref() {
            Expr::Value(_) => vec![],
            _ => return Err("an interval that is not a literal"),
        },
        Expr::Case {
            operand,
            conditions,
            else_result,
            ..
        } => operand
            .iter()
            .map(AsRef::as_ref)
            .chain(conditions.iter().flat_map(|when| [&when.condition, &when.result]))
            .chain(else_result.iter().map(AsRef::as_ref))
            .collect(),
        Expr::Function(function) => arguments(function)?,
        Expr::CompoundIdentifier(_) | Expr::CompoundFieldAccess { .. } | Expr::JsonAccess { .. } => {
            return Err("access to a nested value");
        }
        Expr::InSubquery { .. } | Expr::Exists { .. } | Expr::Subquery(_) | Expr::AnyOp { .. } | Expr::AllOp { .. } => {
            return Err("a subquery");
        }
        _ => return Err("this form of expression"),
    })
}

/// The arguments of a plain call.
pub(super) fn arguments(function: &Function) -> Result<Vec<&Expr>, &'static str> {
    if function.over.is_some() {
        return Err("a window function");
    }
    let plain = function.filter.is_none()
        && function.null_treatment.is_none()
        && function.within_group.is_empty()
        && function.parameters == FunctionArguments::None
        && !function.uses_odbc_syntax;
    match &function.args {
        _ if !plain => Err("this form of call"),
        FunctionArguments::None => Ok(vec![]),
        FunctionArguments::List(list) if list.duplicate_treatment.is_none() && list.clauses.is_empty() => list
            .args
            .iter()
            .map(|argument| match argument {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Ok(expr),
                _ => Err("this form of argument"),
            })
            .collect(),
        FunctionArguments::List(_) => Err("this form of argument"),
        FunctionArguments::Subquery(_) => Err("a subquery"),
    }
}

/// What stands behind `DISTINCT` in a call.
pub(super) fn counted_distinct(function: &Function) -> Option<String> {
    match &function.args {
        FunctionArguments::List(list) if list.duplicate_treatment == Some(DuplicateTreatment::Distinct) => {
            let arguments: Vec<_> = list.args.iter().map(ToString::to_string).collect();
            Some(arguments.join(", "))
        }
        _ => None,
    }
}

/// The name of a function, in lower case.
pub(super) fn function_name(name: &ObjectName) -> String {
    name.to_string().to_lowercase()
}

/// Every mistake of shape or name in an expression.
pub(super) fn check(text: Text<'_>, expr: &Expr, dataset: &Dataset, mistakes: &mut Vec<Mistake>) {
    match expr {
        Expr::Identifier(name) => check_field(text, expr, name, dataset, mistakes),
        Expr::Function(function) => check_function(text, function, mistakes),
        _ => {}
    }
    match parts(expr) {
        Ok(parts) => parts.into_iter().for_each(|part| check(text, part, dataset, mistakes)),
        Err(what) => {
            let instead = match what {
                "a subquery" | "a window function" => Some("an expression sees one event only".to_owned()),
                "access to a nested value" => {
                    Some("declare a field for it: name = { type = \"string?\", from = \"outer.inner\" }".to_owned())
                }
                "text in double quotes" => Some("put text in single quotes".to_owned()),
                _ => None,
            };
            mistakes.push(text.mistake(expr, format!("{what} cannot be used here"), instead));
        }
    }
}

fn check_field(text: Text<'_>, expr: &Expr, name: &Ident, dataset: &Dataset, mistakes: &mut Vec<Mistake>) {
    if dataset.field(&name.value).is_some() {
        return;
    }
    let names = || dataset.fields.iter().map(|field| field.name.as_str());
    let instead = if functions::is_unsteady(&name.value.to_lowercase()) {
        Some("a view depends on the record alone, never on a clock".to_owned())
    } else if name.quote_style == Some('"') {
        Some(format!("text stands in single quotes: '{}'", name.value))
    } else {
        nearest(&name.value, names())
            .map(|near| format!("`{near}`"))
            .or_else(|| Some(format!("one of {}", names().collect::<Vec<_>>().join(", "))))
    };
    mistakes.push(text.mistake(
        expr,
        format!("dataset `{}` has no field `{}`", dataset.name, name.value),
        instead,
    ));
}

fn check_function(text: Text<'_>, function: &Function, mistakes: &mut Vec<Mistake>) {
    let name = function_name(&function.name);
    if functions::find(&name).is_some() {
        return;
    }
    let (what, instead) = if functions::is_unsteady(&name) {
        (
            format!("{name}() depends on the moment or the machine it runs on, but a view on the record alone"),
            Some("use the event time or another field".to_owned()),
        )
    } else if measure::kind(&name).is_some() {
        (
            format!("{name}() is an aggregate and cannot stand inside an expression"),
            Some("a measure of its own".to_owned()),
        )
    } else {
        let near = nearest(&name, functions::FUNCTIONS.iter().map(|function| function.name));
        (
            format!("there is no function {name}()"),
            near.map(|near| format!("{near}()")).or_else(|| {
                let all: Vec<_> = functions::FUNCTIONS.iter().map(|function| function.name).collect();
                Some(format!("one of {}", all.join(", ")))
            }),
        )
    };
    mistakes.push(text.mistake(&function.name, what, instead));
}

/// The most levels that one measure of quantiles may have.
const MOST_LEVELS: usize = 20;

/// The levels of quantiles, as in `[0.5, 0.95]`.
pub(super) fn levels(text: Text<'_>, kind: &str, list: &Expr) -> Result<Vec<f64>, Mistake> {
    let example = || Some("levels from 0 to 1, such as [0.5, 0.95]".to_owned());
    let Expr::Array(array) = list else {
        let what = format!("the second argument of {kind}() is a list of levels in square brackets");
        let instead = match level(list) {
            Some(level) if (0.0..=1.0).contains(&level) => Some(format!("[{list}]")),
            _ => example(),
        };
        return Err(text.mistake(list, what, instead));
    };
    if array.elem.is_empty() || array.elem.len() > MOST_LEVELS {
        let what = match array.elem.len() {
            0 => format!("{kind}() has no level"),
            many => format!("{kind}() has {many} levels, at most {MOST_LEVELS} are allowed"),
        };
        return Err(text.mistake(list, what, example()));
    }
    let read = |element: &Expr| match level(element) {
        Some(level) if (0.0..=1.0).contains(&level) => Ok(level.abs()),
        // Somebody thinks in percent. What 1.5 is meant to be, nobody knows.
        Some(level) if (2.0..=100.0).contains(&level) && level.fract() == 0.0 => {
            let what = format!("the level {element} does not lie between 0 and 1");
            Err(text.mistake(element, what, Some(format!("{}", level / 100.0))))
        }
        Some(_) => {
            let what = format!("the level {element} does not lie between 0 and 1");
            Err(text.mistake(element, what, example()))
        }
        None => Err(text.mistake(element, "a level is a number", example())),
    };
    array.elem.iter().map(read).collect()
}

/// A plain number.
fn level(expr: &Expr) -> Option<f64> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => digits.to_string().parse().ok(),
            _ => None,
        },
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => level(expr).map(|level| -level),
        _ => None,
    }
}
