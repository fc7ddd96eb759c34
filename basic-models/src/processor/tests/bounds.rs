//! Tests that hostile chat templates end in an error that names the limit.

use super::super::{ChatTemplate, Message, ProcessorError, Role, SpecialTokens};

/// Renders one question: the text, or the error's message.
fn outcome(source: &str) -> Result<String, String> {
    let specials = SpecialTokens::default();
    let rendered = ChatTemplate::new(source, "hostile.jinja")
        .and_then(|template| template.prompt(&[Message::new(Role::User, "Is it?")], &specials));
    match rendered {
        Ok(piece) => Ok(format!("{piece:?}")),
        Err(error @ ProcessorError::Template { .. }) => Err(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

fn refused(source: &str, limit: &str) {
    let shown: String = source.chars().take(80).collect();
    let message = outcome(source).expect_err(&shown);
    assert!(message.contains("hostile.jinja") && message.contains(limit), "{shown}: {message}");
    assert!(message.len() < 500, "{shown}: {message}");
}

#[test]
fn a_value_that_would_hold_itself_is_refused() {
    let limit = "keeps a namespace";
    refused("{% set a = namespace() %}{% set a.b = a %}{{ a }}", limit);
    refused("{% set a = namespace() %}{% set c = namespace() %}{% set a.c = c %}{% set c.a = a %}{{ a ~ c }}", limit);
    refused("{% set a = namespace() %}{% set a.b = {'c': [a]} %}{{ a|string }}", limit);
    refused("{% set a = namespace() %}{% for i in range(9999) %}{% set a.b = [a.b] %}{% endfor %}", "nests deeper");
}

#[test]
fn long_chains_and_deep_nesting_are_refused() {
    let limit = "nest deeper than 1000";
    refused(&format!("{{{{ 1{} }}}}", " ~ 1".repeat(50_000)), limit);
    refused(&format!("{{{{ messages{} }}}}", "|list".repeat(40_000)), limit);
    refused(&format!("{{{{ {}1 }}}}", "not ".repeat(50_000)), limit);
    refused(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(15_000)), limit);
    refused(&format!("{{{{ {} }}}}", "[".repeat(100_000)), "recursion limits");
    refused(&"a".repeat((256 << 10) + 1), "262144 bytes");
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion limit");
    refused("{% block a %}{{ self.a() }}{% endblock %}", "recursion limit");
    refused("{% include 'chat_template' %}", "includes, imports or extends");
}

#[test]
fn what_never_ends_is_refused() {
    refused("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "may take");
    refused("{% for i in range(90000) %}{% set x = range(90000)|list %}{% endfor %}", "may");
}

#[test]
fn growth_is_refused_whatever_makes_it() {
    let limit = "it makes a value of more than";
    for grow in ["n.x ~ n.x", "n.x + n.x", "n.x * 2", "[n.x, n.x]", "n.x|replace('a', 'aa')", "'%s%s'|format(n.x, n.x)"]
    {
        let start = if grow.starts_with('[') { "['a']" } else { "'a'" };
        let source = format!(
            "{{% set n = namespace(x={start}) %}}{{% for i in range(99) %}}{{% set n.x = {grow} %}}{{% endfor %}}{{{{ n.x }}}}"
        );
        refused(&source, limit);
    }
    refused("{{ 'a' * 10 ** 10 }}", limit);
    refused("{{ messages[0].role * 10 ** 10 }}", limit);
    refused("{{ [0] * 10 ** 10 }}", limit);
    refused("{{ range(90000)|join('a' * 90000) }}", limit);
    refused("{{ ('a' * 90000).join(range(90000)) }}", limit);
    refused("{{ ('a' * 90000).replace('a', 'b' * 90000) }}", limit);
    refused("{{ ('a\n' * 90000)|indent(90000) }}", limit);
    refused("{{ ('a\n' * 90000)|indent(width=90000) }}", limit);
    refused("{{ [1]|batch(10 ** 9, 'x')|list }}", "more than 100000 parts");
    refused("{{ [1]|slice(10 ** 9, 'x')|list }}", "more than 100000 parts");
    refused("{{ [[1]]|map('batch', 10 ** 9, 'x')|list }}", "more than 100000 parts");
    refused("{{ '%999999999d'|format(1) }}", "wider than 9999");
    refused("{{ '{:>999999999}'.format(1) }}", "wider than 9999");
    refused("{{ 'a'.ljust(10 ** 9) }}", "ljust");
    refused("{{ 'a'.center(10 ** 9) }}", "center");
    refused("{% for i in range(90000) %}{{ 'a' * 90000 }}{% endfor %}", "one rendering may make");
    refused(
        "{% set x %}{% for i in range(90000) %}{{ 'a' * 90000 }}{% endfor %}{% endset %}",
        "one rendering may make",
    );
}

#[test]
fn operators_and_statements_of_usual_templates_mean_what_they_meant() {
    let source = "{% macro f(x, y=2) %}[{{ x * y }}]{% endmacro %}{{ f(3) }}{{ f('ab', 3) }}{{ 2 * 1.5 }}{{ 'a' ~ (1 + 2) }}\
        {{ [1] + [2] }}{{ messages[::-1][0].role }}{% for i in range(3) recursive %}{{ i }}{% if i == 0 %}\
        {{ loop([7, 8]) }}{% endif %}{% else %}none{% endfor %}{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}\
        {{ 'yes' if n.x == 2 and y is not defined else 'no' }}{{ ['a', 'b']|join('-') }}{{ '='*60000 == '=' }}";
    let said = outcome(source).unwrap();
    assert!(said.contains("[6][ababab]3.0a3[1, 2]user07812yesa-bFalse"), "{said}");
}
