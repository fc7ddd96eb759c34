//! Compiles chat templates to programs that check the values that they create.
//!
//! minijinja has no memory limit, so its instructions are rewritten: each instruction that creates a value is followed
//! by a check of that value, and operators that multiply texts are checked before they run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Vm, WhitespaceConfig, make_string_output, parse};
use minijinja::{AutoEscape, Environment, Error, Value};

use super::bounds::{self, over};
use crate::outside::guarded;

/// The template's name in the engine.
const NAME: &str = "chat_template";
/// The longest template, in bytes.
const SOURCE: usize = 256 << 10;
/// The size of the stack for parsing and rendering, whose depth depends on how deeply the template is nested.
const STACK: usize = 256 << 20;
/// How deep expressions and blocks may be nested; a chain of operators or of `elif` counts as deep as it is long.
const NESTING: usize = 1000;
/// The largest size of a constant that the compiler computes by multiplication.
const CONSTANT: usize = 1 << 20;
/// Marks a filter without a slot, which is looked up by its name.
const NO_SLOT: u8 = !0;

/// A compiled template.
pub(super) struct Program {
    environment: Environment<'static>,
    main: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

impl Program {
    /// Compiles a template for an environment and sets the environment's limits.
    pub(super) fn new(mut environment: Environment<'static>, source: String) -> Result<Self, Error> {
        if source.len() > SOURCE {
            return Err(over(format!("it has more than the {SOURCE} bytes that a template may have")));
        }
        bounds::bound(&mut environment);
        apart(move || {
            // The instructions borrow the source. A process compiles few templates, so each source is leaked.
            let source: &'static str = Box::leak(source.into_boxed_str());
            let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
            let tree = parse(source, NAME, Default::default(), whitespace)?;
            statement(&tree, 0)?;
            let mut generator = CodeGenerator::new(NAME, source);
            generator.compile_stmt(&tree);
            let (main, blocks) = generator.finish();
            let main = checked(&main)?;
            let blocks = blocks.iter().map(|(name, block)| Ok((*name, checked(block)?)));
            let blocks = blocks.collect::<Result<_, Error>>()?;
            Ok(Self { environment, main, blocks })
        })
    }

    /// Renders the program with these variables.
    pub(super) fn render(self: &Arc<Self>, names: Value) -> Result<String, Error> {
        let program = Arc::clone(self);
        apart(move || {
            bounds::begin();
            let mut text = String::new();
            let mut out = make_string_output(&mut text);
            let vm = Vm::new(&program.environment);
            vm.eval(&program.main, names, &program.blocks, &mut out, AutoEscape::None)?;
            Ok(text)
        })
    }
}

/// Runs work on a thread with a large stack. The caller stops waiting when the time is over; the thread then ends when
/// its fuel or its budget is used up.
fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let (done, result) = sync_channel(1);
    let body = move || {
        let _ = done.send(guarded(work));
    };
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(body)
        .map_err(|e| over(format!("there is no thread to run it on: {e}")))?;
    // It waits twice, because a process that was suspended in the meantime may be late without the template's fault.
    let half = bounds::TIME / 2;
    let answer = match result.recv_timeout(half) {
        Err(RecvTimeoutError::Timeout) => result.recv_timeout(half),
        answer => answer,
    };
    match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => Err(over(format!("the template engine gave up: {panic}"))),
        Err(RecvTimeoutError::Timeout) => Err(bounds::too_long()),
        Err(RecvTimeoutError::Disconnected) => Err(over("the template engine gave up".into())),
    }
}

/// The same instructions with checks added.
fn checked(from: &Instructions<'static>) -> Result<Instructions<'static>, Error> {
    let filter = |name, arguments| Instruction::ApplyFilter(name, Some(arguments), NO_SLOT);
    let mut to = Instructions::new(from.name(), from.source());
    let mut places = Vec::new();
    for at in 0..from.len() as u32 {
        let Some(instruction) = from.get(at) else { break };
        places.push(to.len() as u32);
        let list = match instruction {
            Instruction::EmitRaw(text) => vec![Instruction::LoadConst(Value::from(*text)), Instruction::Emit],
            Instruction::StringConcat => vec![filter(bounds::CONCAT, 2)],
            Instruction::Mul => vec![filter(bounds::MULTIPLY, 2)],
            Instruction::SetAttr(_) => {
                vec![Instruction::Swap, filter(bounds::KEPT, 1), Instruction::Swap, instruction.clone()]
            }
            Instruction::Add
            | Instruction::Slice
            | Instruction::BuildList(_)
            | Instruction::BuildMap(_)
            | Instruction::ApplyFilter(..)
            | Instruction::CallFunction(..)
            | Instruction::CallMethod(..)
            | Instruction::CallObject(_) => vec![instruction.clone(), filter(bounds::MADE, 1)],
            Instruction::Include(_) | Instruction::LoadBlocks => {
                return Err(over("it includes, imports or extends another template, and there is none".into()));
            }
            other => vec![other.clone()],
        };
        for instruction in list {
            match (from.get_span(at), from.get_line(at)) {
                (Some(span), _) => to.add_with_span(instruction, span),
                (None, Some(line)) => to.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX)),
                (None, None) => to.add(instruction),
            };
        }
    }
    places.push(to.len() as u32);
    for at in 0..to.len() as u32 {
        if let Some(
            Instruction::Iterate(target)
            | Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::BuildMacro(_, target, _),
        ) = to.get_mut(at)
        {
            *target = places.get(*target as usize).copied().unwrap_or(u32::MAX);
        }
    }
    Ok(to)
}

fn deeper(depth: usize) -> Result<usize, Error> {
    match depth < NESTING {
        true => Ok(depth + 1),
        false => Err(over(format!("its expressions or blocks nest deeper than {NESTING}"))),
    }
}

/// Checks the nesting and the constants of a statement before they are compiled.
fn statement(statement: &Stmt<'_>, depth: usize) -> Result<(), Error> {
    let depth = deeper(depth)?;
    let all = |body: &[Stmt<'_>]| body.iter().try_for_each(|inner| self::statement(inner, depth));
    let value = |inner: &Expr<'_>| expression(inner, depth);
    let maybe = |inner: &Option<Expr<'_>>| inner.as_ref().map_or(Ok(()), value);
    match statement {
        Stmt::Template(s) => all(&s.children),
        Stmt::EmitExpr(s) => value(&s.expr),
        Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => Ok(()),
        Stmt::ForLoop(s) => {
            value(&s.target)?;
            value(&s.iter)?;
            maybe(&s.filter_expr)?;
            all(&s.body)?;
            all(&s.else_body)
        }
        Stmt::IfCond(s) => {
            value(&s.expr)?;
            all(&s.true_body)?;
            all(&s.false_body)
        }
        Stmt::WithBlock(s) => {
            s.assignments.iter().try_for_each(|(name, given)| value(name).and_then(|()| value(given)))?;
            all(&s.body)
        }
        Stmt::Set(s) => value(&s.target).and_then(|()| value(&s.expr)),
        Stmt::SetBlock(s) => {
            value(&s.target)?;
            maybe(&s.filter)?;
            all(&s.body)
        }
        Stmt::AutoEscape(s) => value(&s.enabled).and_then(|()| all(&s.body)),
        Stmt::FilterBlock(s) => value(&s.filter).and_then(|()| all(&s.body)),
        Stmt::Block(s) => all(&s.body),
        Stmt::Macro(s) => {
            s.args.iter().chain(&s.defaults).try_for_each(value)?;
            all(&s.body)
        }
        Stmt::CallBlock(s) => {
            value(&s.call.expr)?;
            arguments(&s.call.args, depth)?;
            s.macro_decl.args.iter().chain(&s.macro_decl.defaults).try_for_each(value)?;
            all(&s.macro_decl.body)
        }
        Stmt::Do(s) => value(&s.call.expr).and_then(|()| arguments(&s.call.args, depth)),
        Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
            Err(over("it includes, imports or extends another template, and there is none".into()))
        }
    }
}

fn arguments(arguments: &[CallArg<'_>], depth: usize) -> Result<(), Error> {
    arguments.iter().try_for_each(|argument| match argument {
        CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => expression(e, depth),
    })
}

fn expression(expression: &Expr<'_>, depth: usize) -> Result<(), Error> {
    let depth = deeper(depth)?;
    let value = |inner: &Expr<'_>| self::expression(inner, depth);
    let maybe = |inner: &Option<Expr<'_>>| inner.as_ref().map_or(Ok(()), value);
    match expression {
        Expr::Var(_) | Expr::Const(_) => Ok(()),
        Expr::Slice(e) => {
            value(&e.expr)?;
            [&e.start, &e.stop, &e.step].into_iter().try_for_each(maybe)
        }
        Expr::UnaryOp(e) => value(&e.expr),
        Expr::BinOp(e) => {
            value(&e.left)?;
            value(&e.right)?;
            // The compiler evaluates operations on constants, so the size of their result is checked here.
            match e.op {
                BinOpKind::Mul => match (e.left.as_const(), e.right.as_const()) {
                    (Some(left), Some(right)) => bounds::product(&left, &right, CONSTANT),
                    _ => Ok(()),
                },
                _ => Ok(()),
            }
        }
        Expr::Compare(e) => {
            value(&e.expr)?;
            e.ops.iter().try_for_each(|op| value(&op.expr))
        }
        Expr::IfExpr(e) => {
            value(&e.test_expr)?;
            value(&e.true_expr)?;
            maybe(&e.false_expr)
        }
        Expr::Filter(e) => maybe(&e.expr).and_then(|()| arguments(&e.args, depth)),
        Expr::Test(e) => value(&e.expr).and_then(|()| arguments(&e.args, depth)),
        Expr::GetAttr(e) => value(&e.expr),
        Expr::GetItem(e) => value(&e.expr).and_then(|()| value(&e.subscript_expr)),
        Expr::Call(e) => value(&e.expr).and_then(|()| arguments(&e.args, depth)),
        Expr::List(e) => e.items.iter().try_for_each(value),
        Expr::Map(e) => e.keys.iter().chain(&e.values).try_for_each(value),
    }
}
