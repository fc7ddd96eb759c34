//! Runs the example `own_routes`, which serves a model beside routes of its own and asks itself.

#[path = "../examples/own_routes.rs"]
#[allow(dead_code)]
mod own_routes;

#[test]
fn the_example_answers_on_its_own_routes_and_on_the_model_s() {
    let answers = own_routes::serve(None).unwrap();
    assert_eq!(answers[0], "a route of the program itself");
    let reply: serde_json::Value = serde_json::from_str(&answers[1]).unwrap();
    assert_eq!(reply["model"], "shapes");
    assert_eq!(reply["object"], "chat.completion");
    assert!(reply["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| (1..=8).contains(&tokens)), "{reply}");
    assert_eq!(answers.len(), 2);
}
