//! Values that come as forms, in every variant that was seen on the wire (rest-api 8).

use super::*;

/// A part: the parameters behind its name, its own headers, its bytes.
type Part<'a> = (&'a str, &'a str, &'a [u8]);

/// Who sends it, its parts, what follows the last boundary, and the value and metadata that are meant.
type Variant<'a> = (&'a str, Vec<Part<'a>>, &'a str, &'a [u8], Json);

fn form(parts: &[Part<'_>], after: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (disposition, headers, bytes) in parts {
        body.extend_from_slice(b"--B0undary\r\nContent-Disposition: form-data; ");
        body.extend_from_slice(format!("{disposition}\r\n{headers}\r\n").as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--B0undary--\r\n{after}").as_bytes());
    body
}

const FORM: &str = "multipart/form-data; boundary=B0undary";

async fn put(world: &World, body: Vec<u8>, chunk_length: usize) -> Reply {
    let chunks = body.chunks(chunk_length).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    let ask = Ask::new(Method::PUT, &world.path("values/k")).header("content-type", FORM).chunks(chunks);
    world.send(ask).await
}

#[track_caller]
fn is(found: (Option<Bytes>, Json), value: &[u8], metadata: &Json) {
    assert_eq!((found.0.as_deref(), &found.1), (Some(value), metadata));
}

#[tokio::test]
async fn every_clients_form_is_understood() {
    let world = World::start().await;
    let octets = "Content-Type: application/octet-stream\r\n";
    let json_part = "Content-Type: application/json\r\n";
    let plain: Part<'_> = ("name=\"metadata\"", "", br#"{"a":1}"#);
    let object = json!({"a": 1});
    let bytes: &[u8] = b"\x00\xff\r\n--B0undar\r\n";
    let variants: Vec<Variant<'_>> = vec![
        ("wrangler, text", vec![("name=\"value\"", "", b"v"), plain], "", b"v", object.clone()),
        (
            "wrangler, file",
            vec![("name=\"value\"; filename=\"blob\"", octets, bytes), plain],
            "",
            bytes,
            object.clone(),
        ),
        ("npm 7, no metadata", vec![("name=\"value\"", "", b"v")], "", b"v", Json::Null),
        (
            "npm 7, object",
            vec![
                ("name=\"value\"", "", b"v"),
                ("name=\"metadata[a]\"", "", b"1"),
                ("name=\"metadata[n][x][]\"", "", b"p"),
                ("name=\"metadata[n][x][]\"", "", b"q"),
            ],
            "",
            b"v",
            json!({"a": "1", "n": {"x": ["p", "q"]}}),
        ),
        (
            "npm 5",
            vec![("name=\"value\"", "", b"v"), ("name=\"metadata\"; filename=\"metadata\"", json_part, br#"{"a":1}"#)],
            "\r\n",
            b"v",
            object.clone(),
        ),
        (
            "PyPI 5",
            vec![
                ("name=\"metadata\"", json_part, br#"{"a":1}"#),
                ("name=\"value\"; filename=\"upload\"", octets, b"v"),
            ],
            "",
            b"v",
            object.clone(),
        ),
        (
            "PyPI 5, text",
            vec![
                ("name=\"value\"; filename=\"upload\"", octets, b"v"),
                ("name=\"metadata\"", "Content-Type: text/plain\r\n", b"\"s\""),
            ],
            "",
            b"v",
            json!("s"),
        ),
        ("cloudflare-rs", vec![plain, ("name=\"value\"", "", b"v")], "", b"v", object),
        (
            "Go 6",
            vec![
                ("name=\"metadata.a\"", "", b"1"),
                ("name=\"metadata.n.x.0\"", "", b"p"),
                ("name=\"value\"; filename=\"anonymous_file\"", octets, b"v"),
            ],
            "",
            b"v",
            json!({"a": "1", "n": {"x": ["p"]}}),
        ),
        ("null", vec![("name=\"value\"", "", b""), ("name=\"metadata\"", "", b"null")], "", b"", Json::Null),
        (
            "others",
            vec![("name=\"other\"", "", b"x"), ("name=\"value\"", "", b"v"), ("name=\"\"", "", b"")],
            "",
            b"v",
            Json::Null,
        ),
    ];
    for (client, parts, after, value, metadata) in variants {
        for chunk_length in [1, 7, 1_000_000] {
            assert_eq!(put(&world, form(&parts, after), chunk_length).await.result(), Json::Null, "{client}");
            is((world.value("k").await, world.metadata("k").await), value, &metadata);
        }
    }
}

#[tokio::test]
async fn metadata_is_kept_as_its_very_text() {
    let world = World::start().await;
    let text = r#"{"n": 1.50, "big": 12345678901234567890123, "s": "\ud800"}"#;
    put(&world, form(&[("name=\"value\"", "", b"v"), ("name=\"metadata\"", "", text.as_bytes())], ""), 100)
        .await
        .result();
    let reply = world.get(&world.path("metadata/k")).await;
    assert_eq!(reply.body, format!(r#"{{"success":true,"errors":[],"messages":[],"result":{text}}}"#));
    let listed = world.get(&world.path("keys")).await;
    let listed = String::from_utf8(listed.body.to_vec()).unwrap();
    assert!(listed.contains(&format!(r#"[{{"name":"k","metadata":{text}}}]"#)), "{listed}");
    // A write without metadata removes it.
    world.put(&world.path("values/k"), "v").await.result();
    assert_eq!(world.metadata("k").await, Json::Null);
}

#[tokio::test]
async fn forms_that_say_nothing_good_are_refused() {
    let world = World::start().await;
    let value: Part<'_> = ("name=\"value\"", "", b"v");
    for (parts, status, code, text) in [
        (vec![("name=\"metadata\"", "", &b"1"[..])], 400, 10012, "put: 'Missing value field'"),
        (vec![value, ("name=\"metadata\"", "", b"{a:1}")], 400, 10147, "metadata must be valid json"),
        (vec![value, ("name=\"metadata\"", "", b"")], 400, 10147, "metadata must be valid json"),
        (vec![value, ("name=\"metadata\"", "", b"\"\xff\"")], 400, 10147, "metadata must be valid json"),
        (vec![value, value], 400, 10012, "put: 'the form field 'value' is given twice'"),
        (
            vec![value, ("name=\"metadata\"", "", b"1"), ("name=\"metadata[a]\"", "", b"1")],
            400,
            10012,
            "put: 'metadata is given both as one form field and in pieces'",
        ),
    ] {
        put(&world, form(&parts, ""), 10).await.fails(status, code, text);
        assert_eq!(world.value("k").await, None);
    }
    for length in [1025, 20_000, 300_000] {
        let metadata = format!("\"{}\"", "x".repeat(length - 2));
        let text = format!("put: 'Metadata length of {length} exceeds limit of 1024.'");
        put(&world, form(&[value, ("name=\"metadata\"", "", metadata.as_bytes())], ""), 5000)
            .await
            .fails(413, 10024, &text);
    }
    let metadata = format!("\"{}\"", "x".repeat(1022));
    put(&world, form(&[value, ("name=\"metadata\"", "", metadata.as_bytes())], ""), 100).await.result();
}

#[tokio::test]
async fn broken_forms_are_refused() {
    let world = World::start().await;
    let whole = form(&[("name=\"value\"", "", b"v")], "");
    for length in [0, 5, 30, whole.len() - 20] {
        put(&world, whole[..length].to_vec(), 10).await.fails_saying(400, 10012, "could not read the form");
    }
    for content_type in ["multipart/form-data", "multipart/form-data; boundary", "MULTIPART/Form-Data; boundary="] {
        let ask =
            Ask::new(Method::PUT, &world.path("values/k")).header("content-type", content_type).body(whole.clone());
        world.send(ask).await.fails_saying(400, 10012, "");
    }
    let headless = [b"--B0undary\r\nA: ".to_vec(), vec![b'x'; 1_000_000]].concat();
    put(&world, headless, 10_000).await.fails_saying(400, 10012, "a part's head exceeds");
    put(&world, vec![b'x'; 1_000_000], 10_000).await.fails_saying(400, 10012, "a part's head exceeds");
    assert_eq!(world.value("k").await, None);
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_the_old_value() {
    let world = World::start().await;
    world.put(&world.path("values/k"), "old").await.result();
    let whole = form(&[("name=\"value\"", "", &vec![7; 300_000])], "");
    for content_type in [FORM, "text/plain"] {
        let chunks = vec![
            Ok(Bytes::from(whole[..200_000].to_vec())),
            Err(Error::bad_request("the body broke off or is badly chunked")),
        ];
        let ask = Ask::new(Method::PUT, &world.path("values/k")).header("content-type", content_type).chunks(chunks);
        world.send(ask).await.fails(400, 10012, "put: 'the body broke off or is badly chunked'");
        assert_eq!(world.value("k").await.as_deref(), Some(&b"old"[..]));
    }
}

#[tokio::test]
async fn large_values_of_forms_wait_in_a_spool() {
    let world = World::start().await;
    let metadata: Part<'_> = ("name=\"metadata\"", "", b"{}");
    let value = vec![b'\r'; 26_214_400];
    let body = form(&[("name=\"value\"", "", &value), metadata], "");
    put(&world, body, 100_000).await.result();
    is((world.value("k").await, world.metadata("k").await), &value, &json!({}));

    let (file, rest) = (vec![7; 27_000_000], form(&[metadata], ""));
    let body = [
        b"--B0undary\r\nContent-Disposition: form-data; name=\"value\"\r\n\r\n".to_vec(),
        file,
        b"\r\n".to_vec(),
        rest,
    ];
    let text = "put: 'Value length of 27000000 exceeds limit of 26214400.'";
    put(&world, body.concat(), 100_000).await.fails(413, 10024, text);
    is((world.value("k").await, world.metadata("k").await), &value, &json!({}));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn any_value_survives_any_form(value: Vec<u8>, name in "[a-z]{0,3}", first: bool, chunk_length in 1usize..40) {
        // Only what looks like the boundary itself can't be sent under it.
        proptest::prop_assume!(!value.windows(12).any(|bytes| bytes == b"\r\n--B0undary"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::start().await;
            let metadata = format!("[\"{name}\"]");
            let mut parts = vec![("name=\"value\"", "", value.as_slice()), ("name=\"metadata\"", "", metadata.as_bytes())];
            if first {
                parts.reverse();
            }
            put(&world, form(&parts, ""), chunk_length).await.result();
            is((world.value("k").await, world.metadata("k").await), &value, &json!([name]));
        });
    }

    #[test]
    fn no_bytes_of_a_form_make_it_panic(bytes: Vec<u8>, cut in 0usize..200, chunk_length in 1usize..40) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::start().await;
            let mut body = form(&[("name=\"value\"", "", b"v"), ("name=\"metadata[a]\"", "", b"v")], "");
            let cut = cut.min(body.len());
            body.splice(cut..cut, bytes.iter().copied());
            let reply = put(&world, body, chunk_length).await;
            assert!(reply.status == 200 || reply.status.is_client_error());
        });
    }
}

#[tokio::test]
async fn metadata_nested_without_end_is_refused() {
    let world = World::start().await;
    for name in [format!("metadata{}", ".".repeat(16_000)), format!("metadata{}", "[]".repeat(8000))] {
        let body = format!(
            "--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\nx\r\n--b\r\nContent-Disposition: form-data; name=\"value\"\r\n\r\nv\r\n--b--\r\n"
        );
        let ask = Ask::new(Method::PUT, &world.path("values/k"))
            .header("content-type", "multipart/form-data; boundary=b")
            .body(body);
        world.send(ask).await.fails_saying(400, 10012, "levels");
    }
    assert_eq!(world.value("k").await, None);
}
