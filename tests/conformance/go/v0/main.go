// Drives cloudflare-go v0 through every function that touches KV, against the server that the environment names.
//
// Prints a line of JSON for each check, and how many there were.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	cloudflare "github.com/cloudflare/cloudflare-go"
)

var (
	ctx       = context.Background()
	api       *cloudflare.API
	account   = cloudflare.AccountIdentifier(os.Getenv("KVASAR_TEST_ACCOUNT"))
	namespace string
)

func main() {
	api = connect(os.Getenv("KVASAR_TEST_TOKEN"))
	namespace = must(create("go v0"))
	checks := []struct {
		name string
		run  func()
	}{
		{"namespaces are created, renamed, listed over pages and removed", namespaces},
		{"a title is taken once", titleTaken},
		{"values are written, read and deleted", values},
		{"odd keys are themselves", oddKeys},
		{"keys are listed over pages", pages},
		{"many are written and deleted at once", bulk},
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

func connect(token string) *cloudflare.API {
	return must(cloudflare.NewWithAPIToken(token,
		cloudflare.BaseURL(os.Getenv("KVASAR_TEST_BASE_URL")),
		cloudflare.UsingRateLimit(100_000),
		cloudflare.UsingRetryPolicy(0, 1, 1)))
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

func refused(err error, status, code int) {
	var notFound *cloudflare.NotFoundError
	var request *cloudflare.RequestError
	var authentication *cloudflare.AuthenticationError
	var authorization *cloudflare.AuthorizationError
	switch {
	case errors.As(err, &notFound):
		same([]any{404, notFound.ErrorCodes()}, []any{status, []int{code}})
	case errors.As(err, &request):
		same([]any{400, request.ErrorCodes()}, []any{status, []int{code}})
	case errors.As(err, &authentication):
		same([]any{401, authentication.ErrorCodes()}, []any{status, []int{code}})
	case errors.As(err, &authorization):
		same([]any{403, authorization.ErrorCodes()}, []any{status, []int{code}})
	default:
		panic(fmt.Sprintf("expected a refusal with %d and %d, got %v", status, code, err))
	}
}

func create(title string) (string, error) {
	made, err := api.CreateWorkersKVNamespace(ctx, account, cloudflare.CreateWorkersKVNamespaceParams{Title: title})
	return made.Result.ID, err
}

func put(key string, value []byte) error {
	_, err := api.WriteWorkersKVEntry(ctx, account, cloudflare.WriteWorkersKVEntryParams{NamespaceID: namespace, Key: key, Value: value})
	return err
}

func get(key string) ([]byte, error) {
	return api.GetWorkersKV(ctx, account, cloudflare.GetWorkersKVParams{NamespaceID: namespace, Key: key})
}

func list(prefix string, limit int) (names []string, keys []cloudflare.StorageKey) {
	params := cloudflare.ListWorkersKVsParams{NamespaceID: namespace, Prefix: prefix, Limit: limit}
	for {
		page := must(api.ListWorkersKVKeys(ctx, account, params))
		for _, key := range page.Result {
			names = append(names, key.Name)
			keys = append(keys, key)
		}
		if params.Cursor = page.Cursor; params.Cursor == "" {
			return names, keys
		}
	}
}

func namespaces() {
	for number := range 60 {
		must(create(fmt.Sprintf("go v0 page %02d", number)))
	}
	listed, info, err := api.ListWorkersKVNamespaces(ctx, account, cloudflare.ListWorkersKVNamespacesParams{})
	must(info, err)
	if len(listed) < 61 || len(listed) != info.Total {
		panic(fmt.Sprintf("listed %d of %d namespaces", len(listed), info.Total))
	}
	one := must(create("go v0 before"))
	must(api.UpdateWorkersKVNamespace(ctx, account, cloudflare.UpdateWorkersKVNamespaceParams{NamespaceID: one, Title: "go v0 after"}))
	listed, _, err = api.ListWorkersKVNamespaces(ctx, account, cloudflare.ListWorkersKVNamespacesParams{})
	must(listed, err)
	found := slices.ContainsFunc(listed, func(n cloudflare.WorkersKVNamespace) bool { return n.ID == one && n.Title == "go v0 after" })
	same(found, true)
	must(api.DeleteWorkersKVNamespace(ctx, account, one))
	_, err = api.DeleteWorkersKVNamespace(ctx, account, one)
	refused(err, 404, 10013)
}

func titleTaken() {
	must(create("go v0 taken"))
	_, err := create("go v0 taken")
	refused(err, 400, 10014)
}

func values() {
	everything := make([]byte, 256)
	for index := range everything {
		everything[index] = byte(index)
	}
	for _, value := range [][]byte{[]byte("text"), everything, bytes.Repeat([]byte{7}, 300_000), {}} {
		must(0, put("value", value))
		same(must(get("value")), value)
	}
	remove := func() error {
		_, err := api.DeleteWorkersKVEntry(ctx, account, cloudflare.DeleteWorkersKVEntryParams{NamespaceID: namespace, Key: "value"})
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
		must(0, put(key, []byte(key)))
		same(string(must(get(key))), key)
	}
	names, _ := list("odd ", 0)
	slices.Sort(keys)
	same(names, keys)
}

func pages() {
	var pairs []*cloudflare.WorkersKVPair
	var keys []string
	for number := range 2500 {
		keys = append(keys, fmt.Sprintf("page/%04d", number))
		pairs = append(pairs, &cloudflare.WorkersKVPair{Key: keys[number], Value: "v"})
	}
	must(api.WriteWorkersKVEntries(ctx, account, cloudflare.WriteWorkersKVEntriesParams{NamespaceID: namespace, KVs: pairs}))
	names, _ := list("page/", 0)
	same(names, keys)
	names, _ = list("page/00", 30)
	same(names, keys[:100])
}

func bulk() {
	pairs := []*cloudflare.WorkersKVPair{
		{Key: "bulk/base64", Value: "AAH/", Base64: true},
		{Key: "bulk/expires", Value: "v", Expiration: 4_000_000_000},
		{Key: "bulk/metadata", Value: "é", Metadata: map[string]any{"a": []int{1}}, ExpirationTTL: 600},
	}
	must(api.WriteWorkersKVEntries(ctx, account, cloudflare.WriteWorkersKVEntriesParams{NamespaceID: namespace, KVs: pairs}))
	same(must(get("bulk/base64")), []byte{0, 1, 255})
	names, keys := list("bulk/", 0)
	same(names, []string{"bulk/base64", "bulk/expires", "bulk/metadata"})
	same(keys[1].Expiration, 4_000_000_000)
	same(keys[2].Metadata, map[string]any{"a": []int{1}})
	must(api.DeleteWorkersKVEntries(ctx, account, cloudflare.DeleteWorkersKVEntriesParams{NamespaceID: namespace, Keys: append(names, "bulk/none")}))
	names, _ = list("bulk/", 0)
	same(len(names), 0)
	bad := []*cloudflare.WorkersKVPair{{Key: "bulk/bad", Value: "!", Base64: true}}
	_, err := api.WriteWorkersKVEntries(ctx, account, cloudflare.WriteWorkersKVEntriesParams{NamespaceID: namespace, KVs: bad})
	refused(err, 400, 10012)
}

func missing() {
	_, err := api.ListWorkersKVKeys(ctx, account, cloudflare.ListWorkersKVsParams{NamespaceID: "0123456789abcdef0123456789abcdef"})
	refused(err, 404, 10013)
	stranger := connect("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")
	_, err = stranger.ListWorkersKVKeys(ctx, account, cloudflare.ListWorkersKVsParams{NamespaceID: namespace})
	var authentication *cloudflare.AuthenticationError
	var authorization *cloudflare.AuthorizationError
	if !errors.As(err, &authentication) && !errors.As(err, &authorization) {
		panic(fmt.Sprintf("a wrong token got %v", err))
	}
}
