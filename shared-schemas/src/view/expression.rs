//! Compiles one SQL expression of a view to a DataFusion expression that cannot fail.
//!
//! Parsed and checked by shape in [`super::syntax`], planned and type-coerced by DataFusion, made total by
//! [`super::total`], and cast to one of the [`ValueType`]s. Along goes a second expression that counts, per event, how
//! often a total function gave null although its arguments were not: what would have failed is *counted*, not hidden.

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::expr::{Case, Cast, ScalarFunction, TryCast};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator, cast, lit, try_cast};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::ast::{Expr as Ast, ExprWithAlias};

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;

use super::functions;
use super::syntax::{self, Mistake, Text};
use super::total;
use super::value::ValueType;
use crate::dataset::Dataset;

/// A compiled expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// What to evaluate. It gives a value of `value_type` or null, and never an error.
    pub expr: Expr,
    /// The type of its values.
    pub value_type: ValueType,
    /// Whether it can be null.
    pub nullable: bool,
    /// How often it failed on an event, as Int64; `None` where it cannot.
    pub failures: Option<Expr>,
    /// The text as parsed and written out again: the same for every spacing. Part of the fingerprint.
    pub text: String,
}

/// A session in which nothing depends on the machine: fixed time zone, one partition, names as written.
pub(crate) fn session() -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(1);
    let options = config.options_mut();
    options.execution.time_zone = Some("+00:00".to_owned());
    // Where an author writes `IS TRUE`, the two kinds of plan differ in whether it may be null. Whoever runs a plan checks what
    // comes out.
    options.execution.skip_physical_aggregate_schema_check = true;
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    SessionContext::new_with_state(
        SessionStateBuilder::new()
            .with_config(config)
            .with_default_features()
            .build(),
    )
}

/// Compiles the expressions of one dataset's views.
pub(super) struct Compiler<'a> {
    dataset: &'a Dataset,
    schema: DFSchema,
    session: SessionContext,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(dataset: &'a Dataset, schema: DFSchema) -> Self {
        Self {
            dataset,
            schema,
            session: session(),
        }
    }

    /// Compiles an expression given as text.
    pub(super) fn compile(&self, text: &str) -> Result<Expression, Vec<Mistake>> {
        let text = Text(text);
        let ast = text.parse().map_err(|mistake| vec![mistake])?;
        self.compile_part(text, &ast)
    }

    /// Compiles a part of a parsed text.
    pub(super) fn compile_part(&self, text: Text<'_>, ast: &Ast) -> Result<Expression, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        syntax::check(text, ast, self.dataset, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let wrong = |what: String, instead: Option<&str>| vec![text.mistake(ast, what, instead.map(str::to_owned))];
        let coerced = self.plan(ast).map_err(|_| vec![self.blame(text, ast)])?;
        self.probe(&coerced)
            .map_err(|error| wrong(syntax::sentence(&error.strip_backtrace()), None))?;
        let planned = coerced
            .get_type(&self.schema)
            .map_err(|error| wrong(error.strip_backtrace(), None))?;
        if planned == DataType::Null {
            return Err(wrong("this is always null".to_owned(), None));
        }
        let Some(value_type) = ValueType::of_arrow(&planned) else {
            let instead = "date_part('epoch', …) makes a number of an interval";
            return Err(wrong(
                format!("this gives {planned}, which no column can hold"),
                Some(instead),
            ));
        };
        let plain = matches!(coerced, Expr::Column(_));
        let lowered = self
            .lower(coerced)
            .and_then(|total| self.settle(total, &planned, value_type, plain))
            .map_err(|error| wrong(syntax::sentence(&error.strip_backtrace()), None))?;
        let nullable = lowered.nullable(&self.schema).unwrap_or(true);
        let failures = failures(&lowered);
        Ok(Expression {
            expr: lowered,
            value_type,
            nullable,
            failures,
            text: ast.to_string(),
        })
    }

    /// Plans and coerces an expression.
    fn plan(&self, ast: &Ast) -> datafusion::common::Result<Expr> {
        let state = self.session.state();
        let with_alias = ExprWithAlias {
            expr: ast.clone(),
            alias: None,
        };
        let expr = state
            .create_logical_expr_from_sql_expr(with_alias, &self.schema)?
            .unalias_nested()
            .data;
        self.simplifier().coerce(expr, &self.schema)
    }

    /// The mistake for an expression that cannot be planned, placed at the smallest part that cannot.
    fn blame(&self, text: Text<'_>, ast: &Ast) -> Mistake {
        if let Ok(parts) = syntax::parts(ast) {
            for part in parts {
                if self.plan(part).is_err() {
                    return self.blame(text, part);
                }
            }
        }
        let what = match self.plan(ast) {
            Ok(_) => "this expression cannot be planned".to_owned(),
            Err(error) => syntax::sentence(&error.strip_backtrace()),
        };
        text.mistake(ast, what, None)
    }

    /// Evaluates every part over no rows: what fails there fails always (`CAST('x' AS INT)`, `date_trunc('wek', …)`).
    fn probe(&self, expr: &Expr) -> datafusion::common::Result<()> {
        let none = RecordBatch::new_empty(Arc::new(self.schema.as_arrow().clone()));
        expr.apply(|part| {
            if !matches!(part, Expr::Literal(..) | Expr::Column(_)) {
                self.physical(part.clone())?.evaluate(&none)?;
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(())
    }

    /// An expression ready to evaluate. It is simplified before, as in a plan: `coalesce` exists only until then.
    pub(super) fn physical(&self, expr: Expr) -> datafusion::common::Result<Arc<dyn PhysicalExpr>> {
        let simple = self.simplifier().simplify(expr)?;
        self.session.create_physical_expr(simple, &self.schema)
    }

    fn simplifier(&self) -> ExprSimplifier {
        ExprSimplifier::new(
            SimplifyContext::builder()
                .with_schema(Arc::new(self.schema.clone()))
                .build(),
        )
    }

    /// Replaces what can fail by what cannot.
    fn lower(&self, expr: Expr) -> datafusion::common::Result<Expr> {
        let lowered = expr.transform_up(|part| {
            Ok(match part {
                Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field }) => {
                    Transformed::yes(self.total_cast(*expr, field.data_type())?)
                }
                Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                    match total::arithmetic((*left).clone(), op, (*right).clone()) {
                        Some(total) => Transformed::yes(total),
                        None => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
                    }
                }
                Expr::Negative(value) if !matches!(*value, Expr::Literal(..)) => {
                    Transformed::yes(total::negate(*value))
                }
                Expr::ScalarFunction(ScalarFunction { func, args })
                    if functions::find(func.name()).is_none_or(|function| function.fallible) =>
                {
                    let plain = Expr::ScalarFunction(ScalarFunction {
                        func: Arc::clone(&func),
                        args: args.clone(),
                    });
                    Transformed::yes(total::call(&func, plain.get_type(&self.schema)?, args))
                }
                Expr::Alias(alias) => Transformed::yes(*alias.expr),
                other => Transformed::no(other),
            })
        })?;
        Ok(lowered.data)
    }

    /// A cast that gives null for what does not fit.
    fn total_cast(&self, value: Expr, to: &DataType) -> datafusion::common::Result<Expr> {
        let from = value.get_type(&self.schema)?;
        if from.is_temporal() {
            return Ok(total::cast_to(value, to.clone()));
        }
        let cast = try_cast(value, to.clone());
        // The text 'inf' is a double, but no measure's.
        Ok(if from.is_string() && to.is_floating() {
            total::storable(cast)
        } else {
            cast
        })
    }

    /// Casts to the value type's Arrow type, and to null what no table can hold.
    fn settle(
        &self,
        expr: Expr,
        planned: &DataType,
        value_type: ValueType,
        plain: bool,
    ) -> datafusion::common::Result<Expr> {
        let arrow = value_type.arrow();
        let widened = matches!(
            planned,
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32
        ) || planned.is_string();
        let same = expr.get_type(&self.schema)? == arrow;
        let expr = if same {
            expr
        } else if widened {
            cast(expr, arrow)
        } else {
            self.total_cast(expr, &arrow)?
        };
        // A declared timestamp is within 1970 and 2299 by the decoder's rules; a declared date may be of any year.
        Ok(match value_type {
            ValueType::Float64 | ValueType::Date => total::storable(expr),
            ValueType::Timestamp if !plain => total::storable(expr),
            _ => expr,
        })
    }
}

/// How often an expression fails on an event: an Int64 expression, or `None` where it cannot.
///
/// A part that SQL would not look at (behind `AND`, `OR`, `CASE`) does not count there.
fn failures(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::TryCast(cast) => add(failures(&cast.expr), Some(null_made(expr, [cast.expr.as_ref()]))),
        Expr::ScalarFunction(ScalarFunction { func, args }) => {
            let inner = args.iter().map(failures).fold(None, add);
            if total::can_give_null(func) {
                add(inner, Some(null_made(expr, args)))
            } else {
                inner
            }
        }
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::And,
            right,
        }) => add(failures(left), unless(Expr::Not(left.clone()), failures(right))),
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Or,
            right,
        }) => add(failures(left), unless((**left).clone(), failures(right))),
        Expr::Case(case) => case_failures(case),
        other => {
            let mut sum = None;
            // The visitor never stops with an error.
            let _ = other.apply_children(|child| {
                sum = add(sum.take(), failures(child));
                Ok(TreeNodeRecursion::Continue)
            });
            sum
        }
    }
}

fn case_failures(case: &Case) -> Option<Expr> {
    let operand = case.expr.as_deref();
    let mut sum = operand.and_then(failures);
    // From the last branch to the first: each is looked at only where those before it were not taken.
    let mut rest = case.else_expr.as_deref().and_then(failures);
    for (when, then) in case.when_then_expr.iter().rev() {
        let taken = match operand {
            Some(operand) => operand.clone().eq((**when).clone()),
            None => (**when).clone(),
        };
        let branch = guarded(taken.clone(), failures(then));
        let others = unless(taken, rest.take());
        rest = add(failures(when), add(branch, others));
    }
    sum = add(sum, rest);
    sum
}

/// 1 where a value is null although none of its arguments is.
fn null_made<'a>(value: &Expr, arguments: impl IntoIterator<Item = &'a Expr>) -> Expr {
    let there = arguments
        .into_iter()
        .filter(|argument| !matches!(argument, Expr::Literal(..)))
        .map(|argument| argument.clone().is_not_null())
        .fold(value.clone().is_null(), Expr::and);
    cast(there, DataType::Int64)
}

/// A count, where a condition holds; 0 elsewhere.
pub(super) fn guarded(condition: Expr, count: Option<Expr>) -> Option<Expr> {
    Some(either(condition, count?, lit(0_i64)))
}

/// A count, where a condition does not hold; 0 where it does.
fn unless(condition: Expr, count: Option<Expr>) -> Option<Expr> {
    Some(either(condition, lit(0_i64), count?))
}

/// One or the other; a condition that is null does not hold. Said by `CASE` alone: `IS TRUE`, which two measures with the same
/// condition would share, is never null to DataFusion's logical plan and may be to its physical one, which refuses that.
fn either(condition: Expr, then: Expr, otherwise: Expr) -> Expr {
    Expr::Case(Case {
        expr: None,
        when_then_expr: vec![(Box::new(condition), Box::new(then))],
        else_expr: Some(Box::new(otherwise)),
    })
}

/// The sum of two counts.
pub(crate) fn add(a: Option<Expr>, b: Option<Expr>) -> Option<Expr> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}
