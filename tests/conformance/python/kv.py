"""Drives the Python SDK through every method that touches KV, against the server that the environment names.

Prints a line of JSON for each check, and how many there were. Keys that need it are percent-encoded for 4.3.1, which leaves that to its caller.
"""

import base64
import io
import json
import os
import sys
import time
import traceback
from urllib.parse import quote

import cloudflare
from cloudflare import Cloudflare

VERSION = sys.argv[1]
OLD = VERSION.startswith("4.")
ACCOUNT = os.environ["KVASAR_TEST_ACCOUNT"]

client = Cloudflare(
    base_url=os.environ["KVASAR_TEST_BASE_URL"],
    api_token=os.environ["KVASAR_TEST_TOKEN"],
    max_retries=0,
)
namespaces = client.kv.namespaces
namespace = namespaces.create(account_id=ACCOUNT, title=f"python {VERSION}").id
scope = {"account_id": ACCOUNT, "namespace_id": namespace}
checks = []


def check(function):
    """Marks a check; its name is its claim."""
    checks.append(function)
    return function


def key(name):
    return quote(name, safe="") if OLD else name


def put(name, value, metadata=None, **options):
    """Writes one value; 4.3.1 sends a JSON body, which is stored as it is, so bytes written are the body's there."""
    if OLD:
        namespaces.values.update(key(name), **scope, value=value.decode(), metadata=json.dumps(metadata), **options)
        return
    if metadata is not None:
        options["metadata"] = metadata
    namespaces.values.update(key(name), **scope, value=value, **options)


def get(name):
    return namespaces.values.get(key(name), **scope).read()


def equal(got, expected):
    assert got == expected, f"got {got!r}, expected {expected!r}"


def refused(call, status, code):
    try:
        call()
    except cloudflare.APIStatusError as error:
        equal((error.status_code, [e["code"] for e in error.body["errors"]]), (status, [code]))
        return error.body["errors"][0]["message"]
    raise AssertionError("was not refused")


@check
def the_installed_version_is_the_one_named():
    equal(cloudflare.__version__, VERSION)


@check
def namespace_is_created_read_renamed_listed_and_removed():
    made = namespaces.create(account_id=ACCOUNT, title=f"python {VERSION} one")
    equal((made.title, made.supports_url_encoding, len(made.id)), (f"python {VERSION} one", True, 32))
    equal(namespaces.get(made.id, account_id=ACCOUNT).title, f"python {VERSION} one")
    namespaces.update(made.id, account_id=ACCOUNT, title=f"python {VERSION} two")
    assert f"python {VERSION} two" in [found.title for found in namespaces.list(account_id=ACCOUNT)]
    namespaces.delete(made.id, account_id=ACCOUNT)
    refused(lambda: namespaces.get(made.id, account_id=ACCOUNT), 404, 10013)


@check
def namespaces_are_listed_over_pages():
    titles = [f"python {VERSION} page {number}" for number in range(7)]
    for title in titles:
        namespaces.create(account_id=ACCOUNT, title=title)
    pages = namespaces.list(account_id=ACCOUNT, per_page=5, order="title", direction="asc")
    listed = [found.title for found in pages]
    equal([title for title in listed if title.startswith(f"python {VERSION} page")], titles)
    equal(listed, sorted(listed))
    down = [found.title for found in namespaces.list(account_id=ACCOUNT, per_page=5, order="title", direction="desc")]
    equal(down, listed[::-1])


@check
def a_title_is_taken_once():
    namespaces.create(account_id=ACCOUNT, title=f"python {VERSION} taken")
    refused(lambda: namespaces.create(account_id=ACCOUNT, title=f"python {VERSION} taken"), 400, 10014)


@check
def a_missing_key_is_404():
    equal(refused(lambda: get("none"), 404, 10009), "get: 'key not found'")
    refused(lambda: namespaces.metadata.get(key("none"), **scope), 404, 10009)


@check
def a_value_is_written_read_and_deleted():
    put("plain", b"a value")
    expected = b"a value"
    if OLD:
        expected = get("plain")
        equal(json.loads(expected)["value"], "a value")
    equal(get("plain"), expected)
    namespaces.values.delete(key("plain"), **scope)
    refused(lambda: get("plain"), 404, 10009)
    namespaces.values.delete(key("plain"), **scope)


@check
def odd_keys_are_themselves():
    for name in ["a/b", "a b+c", "100%", "%2F", "é/☃", "?x=1#y", "a&b=c"]:
        put(f"odd {name}", b"v")
        assert get(f"odd {name}") != b""
    listed = [found.name for found in namespaces.keys.list(namespace, account_id=ACCOUNT, prefix="odd ")]
    equal(sorted(listed), sorted(f"odd {name}" for name in ["a/b", "a b+c", "100%", "%2F", "é/☃", "?x=1#y", "a&b=c"]))


@check
def expirations_are_kept_and_checked():
    put("expires", b"v", expiration_ttl=300)
    listed = list(namespaces.keys.list(namespace, account_id=ACCOUNT, prefix="expires"))
    assert abs(listed[0].expiration - (time.time() + 300)) < 5, listed
    refused(lambda: put("expires", b"v", expiration_ttl=59), 400, 10034)
    refused(lambda: put("expires", b"v", expiration=1), 400, 10033)


@check
def keys_are_listed_over_pages():
    pairs = [{"key": f"page/{number:04}", "value": "v"} for number in range(2500)]
    result = namespaces.bulk_update(namespace, account_id=ACCOUNT, body=pairs)
    equal((result.successful_key_count, result.unsuccessful_keys), (2500, []))
    listed = [found.name for found in namespaces.keys.list(namespace, account_id=ACCOUNT, prefix="page/")]
    equal(listed, [pair["key"] for pair in pairs])
    small = [found.name for found in namespaces.keys.list(namespace, account_id=ACCOUNT, prefix="page/00", limit=30)]
    equal(small, [pair["key"] for pair in pairs[:100]])


@check
def many_are_written_read_and_deleted_at_once():
    pairs = [
        {"key": "bulk/text", "value": "text é", "metadata": {"m": [1]}, "expiration_ttl": 600},
        {"key": "bulk/json", "value": '{"a": 1}'},
        {"key": "bulk/bytes", "value": base64.b64encode(b"bytes").decode(), "base64": True},
    ]
    equal(namespaces.bulk_update(namespace, account_id=ACCOUNT, body=pairs).successful_key_count, 3)
    names = [pair["key"] for pair in pairs]
    plain = namespaces.bulk_get(namespace, account_id=ACCOUNT, keys=names + ["bulk/none"])
    equal(plain.values, {"bulk/text": "text é", "bulk/json": '{"a": 1}', "bulk/bytes": "bytes", "bulk/none": None})
    parsed = namespaces.bulk_get(namespace, account_id=ACCOUNT, keys=["bulk/json"], type="json")
    equal(parsed.values, {"bulk/json": {"a": 1}})
    full = namespaces.bulk_get(namespace, account_id=ACCOUNT, keys=["bulk/text"], with_metadata=True).values["bulk/text"]
    equal((full.value, full.metadata), ("text é", {"m": [1]}))
    equal(namespaces.metadata.get(key("bulk/text"), **scope), {"m": [1]})
    deleted = namespaces.bulk_delete(namespace, account_id=ACCOUNT, body=names + ["bulk/none"])
    equal((deleted.successful_key_count, deleted.unsuccessful_keys), (4, []))
    equal(list(namespaces.keys.list(namespace, account_id=ACCOUNT, prefix="bulk/")), [])


@check
def the_older_names_of_the_bulk_calls_work():
    keys = namespaces.keys
    equal(keys.bulk_update(namespace, account_id=ACCOUNT, body=[{"key": "alias", "value": "v"}]).successful_key_count, 1)
    equal(keys.bulk_get(namespace, account_id=ACCOUNT, keys=["alias"]).values, {"alias": "v"})
    equal(keys.bulk_delete(namespace, account_id=ACCOUNT, body=["alias"]).successful_key_count, 1)


@check
def bulk_requests_are_checked():
    many = [f"key {number}" for number in range(101)]
    refused(lambda: namespaces.bulk_get(namespace, account_id=ACCOUNT, keys=many), 400, 10029)
    bad = [{"key": "bulk/bad", "value": "!", "base64": True}]
    refused(lambda: namespaces.bulk_update(namespace, account_id=ACCOUNT, body=bad), 400, 10012)


@check
def an_unknown_namespace_and_a_wrong_token_are_refused():
    unknown = "0123456789abcdef0123456789abcdef"
    refused(lambda: namespaces.values.get("k", account_id=ACCOUNT, namespace_id=unknown), 404, 10013)
    stranger = Cloudflare(base_url=os.environ["KVASAR_TEST_BASE_URL"], api_token="x" * 40, max_retries=0)
    try:
        stranger.kv.namespaces.get(namespace, account_id=ACCOUNT)
    except (cloudflare.AuthenticationError, cloudflare.PermissionDeniedError) as error:
        equal(error.body["errors"][0]["code"], 10000)
    else:
        raise AssertionError("a wrong token was accepted")


if OLD:

    @check
    def a_json_body_is_stored_as_it_is():
        put("old/json", b"text", {"m": 1}, expiration_ttl=600)
        equal(json.loads(get("old/json")), {"metadata": json.dumps({"m": 1}), "value": "text"})
        equal(namespaces.metadata.get(key("old/json"), **scope), None)

else:

    @check
    def metadata_travels_as_an_object_and_as_text():
        put("metadata/object", b"v", {"a": {"b": [1, None, "é"]}})
        equal(namespaces.metadata.get("metadata/object", **scope), {"a": {"b": [1, None, "é"]}})
        put("metadata/text", b"v", '["as", "text"]')
        equal(namespaces.metadata.get("metadata/text", **scope), ["as", "text"])
        put("metadata/none", b"v")
        equal(namespaces.metadata.get("metadata/none", **scope), None)
        refused(lambda: put("metadata/bad", b"v", "not json"), 400, 10147)

    @check
    def values_are_bytes_files_and_large():
        everything = bytes(range(256))
        put("value/bytes", everything)
        equal(get("value/bytes"), everything)
        put("value/file", io.BytesIO(everything * 4000))
        equal(get("value/file"), everything * 4000)
        put("value/empty", b"")
        equal(get("value/empty"), b"")
        largest = b"x" * 26_214_400
        put("value/largest", largest)
        assert get("value/largest") == largest
        refused(lambda: put("value/largest", largest + b"x"), 413, 10024)


for function in checks:
    line = {"name": function.__name__.replace("_", " ")}
    try:
        function()
    except Exception:
        line["error"] = traceback.format_exc(limit=-3)
    print(json.dumps(line), flush=True)
print(json.dumps({"done": len(checks)}))
