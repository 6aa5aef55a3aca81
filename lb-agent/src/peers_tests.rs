use super::*;

fn said(status: StatusCode, body: &str) -> Result<Vec<String>, String> {
    read("ash", &(status, body.as_bytes().to_vec()))
}

#[test]
fn only_an_agent_that_says_so_takes_packets() {
    assert_eq!(said(StatusCode::OK, r#"{"node":"ash","takes":["gue"]}"#), Ok(vec!["gue".to_owned()]));
    for (status, body) in [
        (StatusCode::NOT_FOUND, "404 page not found"),
        (StatusCode::OK, r#"{"node":"ash","takes":[]}"#),
        (StatusCode::OK, r#"{"node":"oak","takes":["gue"]}"#),
        (StatusCode::OK, "ok"),
        (StatusCode::SERVICE_UNAVAILABLE, r#"{"node":"ash","takes":["gue"]}"#),
    ] {
        assert!(said(status, body).is_err(), "{status} {body}");
    }
}

#[test]
fn an_answer_stands_while_there_is_none_and_goes_with_another_or_with_the_node() {
    let mut answers = Answers::default();
    let ash = || "ash".to_owned();
    answers.update(vec![(ash(), None)]);
    assert!(!answers.takes("ash", Dsr::Ipip) && !answers.complete());
    answers.update(vec![(ash(), Some(Ok(vec!["ipip".to_owned()])))]);
    assert!(answers.takes("ash", Dsr::Ipip) && !answers.takes("ash", Dsr::Gue));
    assert!(!answers.takes("ash", Dsr::Off) && answers.complete());
    answers.update(vec![(ash(), None)]);
    assert!(answers.takes("ash", Dsr::Ipip), "it restarts");
    answers.update(vec![(ash(), Some(Err("no".to_owned())))]);
    assert!(!answers.takes("ash", Dsr::Ipip), "another proxy took its place");
    answers.update(vec![(ash(), Some(Ok(taken())))]);
    answers.update(Vec::new());
    answers.update(vec![(ash(), None)]);
    assert!(!answers.takes("ash", Dsr::Gue), "another node of that name");
}

#[tokio::test]
async fn nodes_are_asked_where_their_health_answers() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = Taken { node: "ash".to_owned(), takes: taken() };
    let routes = axum::Router::new().route(PATH, axum::routing::get(|| async { axum::Json(taken) }));
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });
    let (link, asked, told) = link();
    let task = tokio::spawn(watch(port, asked, told));
    let mut answers = link.answers.clone();
    link.nodes.send_replace(BTreeMap::from([
        ("ash".to_owned(), vec!["127.0.0.1".parse().unwrap()]),
        ("oak".to_owned(), vec!["127.0.0.1".parse().unwrap()]),
    ]));
    let both = answers.wait_for(|a| a.0.len() == 2).await.unwrap().clone();
    assert!(both.takes("ash", Dsr::Gue) && !both.takes("oak", Dsr::Gue), "{both:?}");
    drop((link, answers));
    task.await.unwrap();
    server.abort();
}
