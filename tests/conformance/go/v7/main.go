// Drives cloudflare-go v7 through every method that touches KV, against the server that the environment names.
//
// Prints a line of JSON for each check, and how many there were. Keys are escaped here, because the SDK leaves that to its caller.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/cloudflare/cloudflare-go/v7/kv"
	"github.com/cloudflare/cloudflare-go/v7/option"
	"github.com/cloudflare/cloudflare-go/v7/shared"
)

var (
	ctx       = context.Background()
	service   *kv.KVService
	namespace string
)

func main() {
	service = connect(os.Getenv("KVASAR_TEST_TOKEN"))
	namespace = must(create("go v7")).ID
	checks := []struct {
		name string
		run  func()
	}{
		{"namespaces are created, read, renamed, listed over pages and removed", namespaces},
		{"a title is taken once", titleTaken},
		{"values are written from text and from readers, read and deleted", values},
		{"odd keys are themselves", oddKeys},
		{"metadata in dotted fields is put together again", dottedMetadata},
		{"metadata that is text is JSON", textMetadata},
		{"the shape in which Terraform's provider writes is understood", providerShaped},
		{"expirations are kept and checked", expirations},
		{"keys are listed over pages", pages},
		{"many are written, read and deleted at once", bulk},
		{"the older names of the bulk calls work", olderNames},
		{"what is missing and who is unknown is refused", missing},
	}
	for _, check := range checks {
		line := map[string]any{"name": check.name}
		if text := failure(check.run); text != "" {
			line["error"] = text
		}
		print(line)
	}
	print(map[string]any{"done": len(checks)})
}

func connect(token string) *kv.KVService {
	return kv.NewKVService(option.WithBaseURL(os.Getenv("KVASAR_TEST_BASE_URL")+"/"), option.WithAPIToken(token), option.WithMaxRetries(0))
}

type fields map[string]any

// with makes the parameters of a call. The SDK's own way to set a field, `cloudflare.F`, is in its root package, which would compile all of its
// services; so fields are set by name here. A reader takes the place of a value, as `cloudflare.Raw` has it.
func with[Params any](values fields) Params {
	var params Params
	into := reflect.ValueOf(&params).Elem()
	if into.FieldByName("AccountID").IsValid() {
		set(into, "AccountID", os.Getenv("KVASAR_TEST_ACCOUNT"))
	}
	for name, value := range values {
		set(into, name, value)
	}
	return params
}

func set(params reflect.Value, name string, value any) {
	into := params.FieldByName(name)
	if into.Kind() == reflect.Slice {
		into.Set(reflect.ValueOf(value))
		return
	}
	into.FieldByName("Present").SetBool(true)
	if reader, ok := value.(io.Reader); ok {
		into.FieldByName("Raw").Set(reflect.ValueOf(reader))
		return
	}
	into.FieldByName("Value").Set(reflect.ValueOf(value))
}

func print(line map[string]any) {
	fmt.Println(string(must(json.Marshal(line))))
}

// failure runs a check and says how it failed; checks fail by panicking.
func failure(run func()) (text string) {
	defer func() {
		if cause := recover(); cause != nil {
			text = fmt.Sprint(cause)
		}
	}()
	run()
	return ""
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func same(got, expected any) {
	a, b := must(json.Marshal(got)), must(json.Marshal(expected))
	if !bytes.Equal(a, b) {
		panic(fmt.Sprintf("got %.500s, expected %.500s", a, b))
	}
}

func refused(err error, status int, code int64) {
	var refusal *kv.Error
	if !errors.As(err, &refusal) {
		panic(fmt.Sprintf("expected a refusal with %d and %d, got %v", status, code, err))
	}
	codes := []int64{}
	for _, one := range refusal.Errors {
		codes = append(codes, one.Code)
	}
	same([]any{refusal.StatusCode, codes}, []any{status, []int64{code}})
}

func create(title string) (*kv.Namespace, error) {
	return service.Namespaces.New(ctx, with[kv.NamespaceNewParams](fields{"Title": title}))
}

func put(key string, params kv.NamespaceValueUpdateParams, options ...option.RequestOption) error {
	_, err := service.Namespaces.Values.Update(ctx, namespace, url.PathEscape(key), params, options...)
	return err
}

func get(key string) ([]byte, error) {
	response, err := service.Namespaces.Values.Get(ctx, namespace, url.PathEscape(key), with[kv.NamespaceValueGetParams](fields{}))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

func metadata(key string) any {
	return *must(service.Namespaces.Metadata.Get(ctx, namespace, url.PathEscape(key), with[kv.NamespaceMetadataGetParams](fields{})))
}

func list(params kv.NamespaceKeyListParams) (names []string, keys []kv.Key) {
	pages := service.Namespaces.Keys.ListAutoPaging(ctx, namespace, params)
	for pages.Next() {
		names = append(names, pages.Current().Name)
		keys = append(keys, pages.Current())
	}
	must(0, pages.Err())
	return names, keys
}

func namespaces() {
	titles := []string{"go v7 page a", "go v7 page b", "go v7 page c"}
	for _, title := range titles {
		must(create(title))
	}
	var listed []string
	pages := service.Namespaces.ListAutoPaging(ctx, with[kv.NamespaceListParams](fields{"PerPage": 2.0, "Order": kv.NamespaceListParamsOrderTitle, "Direction": kv.NamespaceListParamsDirectionDesc}))
	for pages.Next() {
		listed = append(listed, pages.Current().Title)
	}
	must(0, pages.Err())
	ours := slices.DeleteFunc(slices.Clone(listed), func(title string) bool { return !slices.Contains(titles, title) })
	slices.Reverse(titles)
	same(ours, titles)

	made := must(create("go v7 before"))
	same(made.SupportsURLEncoding, true)
	renamed := must(service.Namespaces.Update(ctx, made.ID, with[kv.NamespaceUpdateParams](fields{"Title": "go v7 after"})))
	same([]string{renamed.ID, renamed.Title}, []string{made.ID, "go v7 after"})
	same(must(service.Namespaces.Get(ctx, made.ID, with[kv.NamespaceGetParams](fields{}))).Title, "go v7 after")
	must(service.Namespaces.Delete(ctx, made.ID, with[kv.NamespaceDeleteParams](fields{})))
	_, err := service.Namespaces.Get(ctx, made.ID, with[kv.NamespaceGetParams](fields{}))
	refused(err, 404, 10013)
}

func titleTaken() {
	must(create("go v7 taken"))
	_, err := create("go v7 taken")
	refused(err, 400, 10014)
}

func values() {
	must(0, put("value", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("text é")})))
	same(string(must(get("value"))), "text é")
	everything := make([]byte, 70_000)
	for index := range everything {
		everything[index] = byte(index)
	}
	must(0, put("value", with[kv.NamespaceValueUpdateParams](fields{"Value": bytes.NewReader(everything)})))
	same(must(get("value")), everything)
	remove := func() error {
		_, err := service.Namespaces.Values.Delete(ctx, namespace, "value", with[kv.NamespaceValueDeleteParams](fields{}))
		return err
	}
	must(0, remove())
	must(0, remove())
	_, err := get("value")
	refused(err, 404, 10009)
}

func oddKeys() {
	keys := []string{"odd %2F", "odd 100%", "odd ?x=1#y", "odd @$&+=:,;", "odd a b+c", "odd a/b", "odd é☃"}
	for _, key := range keys {
		must(0, put(key, with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString(key)})))
		same(string(must(get(key))), key)
	}
	names, _ := list(with[kv.NamespaceKeyListParams](fields{"Prefix": "odd "}))
	slices.Sort(keys)
	same(names, keys)
}

func dottedMetadata() {
	object := map[string]any{"a": "text", "n": map[string]any{"x": []any{"one", "two"}}}
	must(0, put("dotted", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("v"), "Metadata": object})))
	same(metadata("dotted"), object)
	same(string(must(get("dotted"))), "v")
}

func textMetadata() {
	must(0, put("text", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("v"), "Metadata": `{"a":[1,null]}`})))
	same(metadata("text"), map[string]any{"a": []any{1, nil}})
	must(0, put("text", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("v")})))
	same(metadata("text"), nil)
}

// Terraform's provider escapes its keys in the path, and sends the value before the metadata, both as plain fields.
func providerShaped() {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	must(0, form.WriteField("value", "provider's"))
	must(0, form.WriteField("metadata", `{"by":"provider"}`))
	must(0, form.Close())
	raw := option.WithRequestBody(form.FormDataContentType(), body.Bytes())
	must(0, put("provider/key", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("ignored")}), raw))
	same(string(must(get("provider/key"))), "provider's")
	same(metadata("provider/key"), map[string]any{"by": "provider"})
}

func expirations() {
	must(0, put("expires", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("v"), "Expiration": 4_000_000_000.0})))
	_, keys := list(with[kv.NamespaceKeyListParams](fields{"Prefix": "expires"}))
	same(keys[0].Expiration, 4_000_000_000)
	must(0, put("expires", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("v"), "Expiration": 1.0, "ExpirationTTL": 60.0})))
	refused(put("expires", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("v"), "ExpirationTTL": 59.0})), 400, 10034)
	refused(put("expires", with[kv.NamespaceValueUpdateParams](fields{"Value": shared.UnionString("v"), "Expiration": 1.0})), 400, 10033)
}

func pages() {
	var pairs []kv.NamespaceBulkUpdateParamsBody
	var keys []string
	for number := range 2500 {
		keys = append(keys, fmt.Sprintf("page/%04d", number))
		pairs = append(pairs, with[kv.NamespaceBulkUpdateParamsBody](fields{"Key": keys[number], "Value": "v"}))
	}
	result := must(service.Namespaces.BulkUpdate(ctx, namespace, with[kv.NamespaceBulkUpdateParams](fields{"Body": pairs})))
	same(result.SuccessfulKeyCount, 2500)
	names, _ := list(with[kv.NamespaceKeyListParams](fields{"Prefix": "page/"}))
	same(names, keys)
	names, _ = list(with[kv.NamespaceKeyListParams](fields{"Prefix": "page/00", "Limit": 30.0}))
	same(names, keys[:100])
}

func bulk() {
	pairs := []kv.NamespaceBulkUpdateParamsBody{
		with[kv.NamespaceBulkUpdateParamsBody](fields{"Key": "bulk/base64", "Value": "eHl6", "Base64": true}),
		with[kv.NamespaceBulkUpdateParamsBody](fields{"Key": "bulk/json", "Value": `{"a":1}`, "ExpirationTTL": 600.0}),
		with[kv.NamespaceBulkUpdateParamsBody](fields{"Key": "bulk/metadata", "Value": "é", "Metadata": map[string]any{"a": []int{1}}}),
	}
	keys := []string{"bulk/base64", "bulk/json", "bulk/metadata"}
	must(service.Namespaces.BulkUpdate(ctx, namespace, with[kv.NamespaceBulkUpdateParams](fields{"Body": pairs})))
	plain := must(service.Namespaces.BulkGet(ctx, namespace, with[kv.NamespaceBulkGetParams](fields{"Keys": keys})))
	same(sentValues(plain), map[string]any{"bulk/base64": "xyz", "bulk/json": `{"a":1}`, "bulk/metadata": "é"})
	parsed := must(service.Namespaces.BulkGet(ctx, namespace, with[kv.NamespaceBulkGetParams](fields{"Keys": keys[1:2], "Type": kv.NamespaceBulkGetParamsTypeJson})))
	same(sentValues(parsed), map[string]any{"bulk/json": map[string]any{"a": 1}})
	full := must(service.Namespaces.BulkGet(ctx, namespace, with[kv.NamespaceBulkGetParams](fields{"Keys": keys[2:], "WithMetadata": true})))
	same(sentValues(full), map[string]any{"bulk/metadata": map[string]any{"value": "é", "metadata": map[string]any{"a": []int{1}}}})
	deleted := must(service.Namespaces.BulkDelete(ctx, namespace, with[kv.NamespaceBulkDeleteParams](fields{"Body": append(keys, "bulk/none")})))
	same([]any{deleted.SuccessfulKeyCount, deleted.UnsuccessfulKeys}, []any{4, []string{}})
	names, _ := list(with[kv.NamespaceKeyListParams](fields{"Prefix": "bulk/"}))
	same(len(names), 0)
	many := strings.Split(strings.Repeat("k,", 101), ",")[:101]
	for index := range many {
		many[index] = fmt.Sprintf("k%d", index)
	}
	_, err := service.Namespaces.BulkGet(ctx, namespace, with[kv.NamespaceBulkGetParams](fields{"Keys": many}))
	refused(err, 400, 10029)
}

// The values of a bulk get as they were sent: the SDK's own type has one form for each of the ways to ask.
func sentValues(response *kv.NamespaceBulkGetResponse) any {
	var sent struct {
		Values any `json:"values"`
	}
	must(0, json.Unmarshal([]byte(response.JSON.RawJSON()), &sent))
	return sent.Values
}

func olderNames() {
	keys := service.Namespaces.Keys
	pairs := []kv.NamespaceKeyBulkUpdateParamsBody{with[kv.NamespaceKeyBulkUpdateParamsBody](fields{"Key": "older", "Value": "v"})}
	same(must(keys.BulkUpdate(ctx, namespace, with[kv.NamespaceKeyBulkUpdateParams](fields{"Body": pairs}))).SuccessfulKeyCount, 1)
	must(keys.BulkGet(ctx, namespace, with[kv.NamespaceKeyBulkGetParams](fields{"Keys": []string{"older"}})))
	same(must(keys.BulkDelete(ctx, namespace, with[kv.NamespaceKeyBulkDeleteParams](fields{"Body": []string{"older"}}))).SuccessfulKeyCount, 1)
}

func missing() {
	_, err := service.Namespaces.Metadata.Get(ctx, namespace, "none", with[kv.NamespaceMetadataGetParams](fields{}))
	refused(err, 404, 10009)
	_, err = service.Namespaces.Get(ctx, "0123456789abcdef0123456789abcdef", with[kv.NamespaceGetParams](fields{}))
	refused(err, 404, 10013)
	stranger := connect(strings.Repeat("x", 40))
	_, err = stranger.Namespaces.Get(ctx, namespace, with[kv.NamespaceGetParams](fields{}))
	var refusal *kv.Error
	if !errors.As(err, &refusal) || (refusal.StatusCode != 401 && refusal.StatusCode != 403) {
		panic(fmt.Sprintf("a wrong token got %v", err))
	}
}
