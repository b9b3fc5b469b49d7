/*
 * Every call that a function can make, in C: tests/examples/calls.rs is the same in Rust, and
 * tests/tests/calls.rs runs both.
 */
#include "praas.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* The input as a text that ends with a zero; longer ones are cut. */
typedef struct line {
    char text[1024];
} line;

static line line_of(praas_bytes input)
{
    line out;
    size_t len = input.len < sizeof out.text - 1 ? input.len : sizeof out.text - 1;
    if (len > 0) {
        memcpy(out.text, input.ptr, len);
    }
    out.text[len] = 0;
    return out;
}

static int32_t text_out(praas_call_handle *call, const praas_host_table *host, const char *text)
{
    return praas_output(call, host, text, strlen(text));
}

/* Ends the function with the host's text, and where it happened. */
#define TRY(what)                                                                                  \
    do {                                                                                           \
        int32_t code_ = (what);                                                                    \
        if (code_ != PRAAS_OK) {                                                                   \
            return praas_error_pass(call, host, code_);                                            \
        }                                                                                          \
    } while (0)

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            return praas_error(call, host, "not so: " #condition);                                 \
        }                                                                                          \
    } while (0)

PRAAS_FUNCTION(who, PRAAS_FLAG_SHORT)
{
    char text[1024];
    praas_bytes application = host->name(call, 0);
    praas_bytes process = host->name(call, 1);
    praas_bytes function = host->name(call, 2);
    snprintf(text, sizeof text, "%.*s %.*s %.*s %" PRIu64 " %s", (int)application.len,
             (const char *)application.ptr, (int)process.len, (const char *)process.ptr,
             (int)function.len, (const char *)function.ptr, host->incarnation(call),
             host->deadline_left_us(call) < 0 ? "for ever" : "until then");
    host->log(call, 2, praas_text("it was asked who it is"));
    return text_out(call, host, text);
}

/* The invocation's id: whose it is, and its number. */
PRAAS_FUNCTION(id, 0)
{
    praas_invocation_id id = {0, 0, 0};
    char text[64];
    CHECK(PRAAS_HOST_HAS(host, invocation_id));
    host->invocation_id(call, &id);
    snprintf(text, sizeof text, "%016" PRIx64 "%016" PRIx64 " %" PRIu64, id.client_high,
             id.client_low, id.sequence);
    return text_out(call, host, text);
}

/* An object that shares another one's memory, one that is written through, and a file. */
PRAAS_FUNCTION(keeps, 0)
{
    uint64_t version = 0, durable = 0;
    praas_raw_view view = praas_view_none();
    praas_bytes dir = praas_none();
    char path[512];
    FILE *file;
    CHECK(PRAAS_HOST_HAS(host, state_persist));
    TRY(host->state_put(call, praas_text("first"), praas_text("shared"), NULL));
    TRY(host->state_view(call, praas_text("first"), &view));
    TRY(host->state_put_view(call, praas_text("second"), view, &version));
    praas_view_end(host, &view);
    CHECK(host->state_put_view(call, praas_text("second"), praas_view_none(), NULL) ==
          PRAAS_BAD_ARGUMENT);
    TRY(host->state_view(call, praas_text("second"), &view));
    CHECK(view.version == version && praas_text_is(view.bytes, "shared"));
    praas_view_end(host, &view);
    TRY(host->state_dir(call, &dir));
    snprintf(path, sizeof path, "%.*s/file", (int)dir.len, (const char *)dir.ptr);
    file = fopen(path, "w");
    CHECK(file != NULL);
    CHECK(fputs("file", file) >= 0);
    CHECK(fclose(file) == 0);
    TRY(host->state_persist(call, praas_text("second"), -1, &durable));
    CHECK(durable == version);
    TRY(host->state_put(call, praas_text("second"), praas_text("kept"), &version));
    TRY(host->state_put(call, praas_text("first"), praas_text("lost"), NULL));
    TRY(host->state_persist(call, praas_text("second"), 10000000, &durable));
    CHECK(durable == version);
    TRY(host->state_persist(call, praas_text("none"), -1, &durable));
    CHECK(durable == 0);
    CHECK(host->state_persist(call, praas_none(), -1, NULL) == PRAAS_BAD_ARGUMENT);
    return text_out(call, host, "kept");
}

PRAAS_FUNCTION(state, 0)
{
    uint64_t version = 0, now = 0, len = 0;
    praas_raw_view view = praas_view_none(), list = praas_view_none();
    praas_state_entry entry;
    praas_bytes rest;
    uint8_t *draft = NULL;
    char text[256] = "";
    TRY(host->state_put(call, praas_text("b/1"), praas_text("one"), NULL));
    TRY(host->state_append(call, praas_text("b/2"), praas_text("tw"), &len));
    TRY(host->state_append(call, praas_text("b/2"), praas_text("o"), &len));
    CHECK(len == 3);
    TRY(host->state_put(call, praas_text("a"), praas_text("old"), &version));
    TRY(host->state_view(call, praas_text("a"), &view));
    CHECK(view.version == version);
    CHECK(host->state_compare_swap(call, praas_text("a"), version + 9, praas_text("no"), &now) ==
          PRAAS_CONFLICT);
    CHECK(now == version);
    TRY(host->state_compare_swap(call, praas_text("a"), version, praas_text("new"), &now));
    CHECK(now > version);
    CHECK(praas_text_is(view.bytes, "old"));
    praas_view_end(host, &view);
    TRY(host->state_alloc(call, 5, &draft));
    memcpy(draft, "draft", 5);
    CHECK(host->state_commit(call, praas_text("a"), version, &now) == PRAAS_CONFLICT);
    TRY(host->state_commit(call, praas_text("a"), now, &version));
    CHECK(version > now);
    CHECK(host->state_commit(call, praas_text("a"), PRAAS_VERSION_ANY, NULL) == PRAAS_BAD_ARGUMENT);
    TRY(host->state_view(call, praas_text("a"), &view));
    CHECK(praas_text_is(view.bytes, "draft"));
    praas_view_end(host, &view);
    TRY(host->state_delete(call, praas_text("a")));
    CHECK(host->state_delete(call, praas_text("a")) == PRAAS_NOT_FOUND);
    CHECK(host->state_view(call, praas_text("a"), &view) == PRAAS_NOT_FOUND);
    CHECK(host->state_put(call, praas_none(), praas_text("no key"), NULL) == PRAAS_BAD_ARGUMENT);
    TRY(host->state_list(call, praas_text("b/"), praas_none(), 10, &list));
    rest = list.bytes;
    while (praas_state_next(&rest, &entry)) {
        size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "%.*s %" PRIu64 "\n", (int)entry.key.len,
                 (const char *)entry.key.ptr, entry.bytes);
    }
    praas_view_end(host, &list);
    TRY(host->state_list(call, praas_text("b/"), praas_text("b/1"), 10, &list));
    rest = list.bytes;
    CHECK(praas_state_next(&rest, &entry) && praas_text_is(entry.key, "b/2"));
    CHECK(!praas_state_next(&rest, &entry));
    praas_view_end(host, &list);
    return text_out(call, host, text);
}

PRAAS_FUNCTION(mail, 0)
{
    praas_message_view message = praas_message_none();
    praas_bytes self = host->name(call, 1);
    TRY(host->message_put(call, self, praas_text("k"), praas_text("first"), -1));
    TRY(host->message_put(call, self, praas_text("k"), praas_text("second"), 1000000));
    CHECK(host->message_get(call, praas_text("other"), praas_text("k"), 0, 0, &message) ==
          PRAAS_NOT_FOUND);
    TRY(host->message_get(call, praas_none(), praas_text("k"), PRAAS_MESSAGE_PEEK, 0, &message));
    CHECK(praas_text_is(message.payload.bytes, "first"));
    praas_message_end(host, &message);
    TRY(host->message_get(call, self, praas_text("k"), 0, 0, &message));
    CHECK(praas_text_is(message.payload.bytes, "first"));
    praas_message_end(host, &message);
    TRY(host->message_get(call, praas_none(), praas_text("k"), 0, -1, &message));
    CHECK(praas_text_is(message.payload.bytes, "second"));
    CHECK(message.source.bytes.len == self.len);
    praas_message_end(host, &message);
    CHECK(host->message_get(call, praas_none(), praas_text("k"), 0, 1000, &message) ==
          PRAAS_STATUS_DEADLINE_EXCEEDED);
    return PRAAS_OK;
}

/* Waits for a message under the key that the input is: who sent it, and its body. */
static int32_t message_take(praas_call_handle *call, const praas_host_table *host,
                            praas_bytes input)
{
    praas_message_view message = praas_message_none();
    uint8_t *out = NULL;
    size_t source;
    TRY(host->message_get(call, praas_none(), input, 0, -1, &message));
    source = message.source.bytes.len;
    if (host->output_alloc(call, source + 2 + message.payload.bytes.len, &out) == PRAAS_OK) {
        memcpy(out, message.source.bytes.ptr, source);
        memcpy(out + source, ": ", 2);
        if (message.payload.bytes.len > 0) {
            memcpy(out + source + 2, message.payload.bytes.ptr, message.payload.bytes.len);
        }
    }
    praas_message_end(host, &message);
    return PRAAS_OK;
}

PRAAS_FUNCTION(take, 0)
{
    return message_take(call, host, input);
}

/* The same, and running it twice does no harm. */
PRAAS_FUNCTION(take_again, PRAAS_FLAG_IDEMPOTENT)
{
    return message_take(call, host, input);
}

/* Asks for what may have to be waited for, which a short function may not. Input: a process. */
PRAAS_FUNCTION(hurried, PRAAS_FLAG_SHORT)
{
    praas_message_view message = praas_message_none();
    praas_raw_view output = praas_view_none();
    CHECK(host->message_get(call, praas_none(), praas_text("none"), 0, -1, &message) ==
          PRAAS_STATUS_EXHAUSTED);
    CHECK(host->invoke(call, input, praas_text("who"), praas_text(""), -1, &output) ==
          PRAAS_STATUS_EXHAUSTED);
    return PRAAS_OK;
}

/* As many bytes as the input says, if it may hold them. */
PRAAS_FUNCTION_LIMITED(limited, 0, 1, 0, 1 << 16)
{
    line in = line_of(input);
    size_t bytes = (size_t)strtoul(in.text, NULL, 10);
    uint8_t *out = NULL;
    TRY(host->output_alloc(call, bytes, &out));
    memset(out, 'x', bytes);
    return PRAAS_OK;
}

/* Stores an object for which there is to be no room. */
PRAAS_FUNCTION(too_much, 0)
{
    line in = line_of(input);
    size_t bytes = (size_t)strtoul(in.text, NULL, 10);
    void *value = calloc(1, bytes);
    praas_bytes object = praas_text("");
    uint64_t version = 0;
    int32_t code;
    CHECK(value != NULL);
    object.ptr = value;
    object.len = bytes;
    code = host->state_put(call, praas_text("too much"), object, &version);
    free(value);
    CHECK(code == PRAAS_LIMIT_REACHED);
    return praas_error_pass(call, host, code);
}

/* Input "process key body": a message for another process. */
PRAAS_FUNCTION(put, 0)
{
    line in = line_of(input);
    char process[256], key[256], body[256];
    CHECK(sscanf(in.text, "%255s %255s %255s", process, key, body) == 3);
    TRY(host->message_put(call, praas_text(process), praas_text(key), praas_text(body), -1));
    return PRAAS_OK;
}

/* Input "process function": that function's output, for its own name as the input. */
PRAAS_FUNCTION(ask, 0)
{
    line in = line_of(input);
    char process[256], function[256];
    praas_raw_view output = praas_view_none();
    int32_t code;
    CHECK(sscanf(in.text, "%255s %255s", process, function) == 2);
    if (strcmp(process, "self") == 0) {
        process[0] = 0;
    }
    TRY(host->invoke(call, praas_text(process), praas_text(function), praas_text(function),
                     10000000, &output));
    code = praas_output(call, host, output.bytes.ptr, output.bytes.len);
    praas_view_end(host, &output);
    return code;
}

/* Input "process key": a state object of that process, or "none". */
PRAAS_FUNCTION(peer, 0)
{
    line in = line_of(input);
    char process[256], key[256];
    praas_raw_view view = praas_view_none();
    int32_t code;
    CHECK(PRAAS_HOST_HAS(host, peer_state));
    CHECK(sscanf(in.text, "%255s %255s", process, key) == 2);
    code = host->peer_state(call, praas_text(process), praas_text(key), -1, &view);
    if (code == PRAAS_NOT_FOUND) {
        return text_out(call, host, "none");
    }
    TRY(code);
    code = praas_output(call, host, view.bytes.ptr, view.bytes.len);
    praas_view_end(host, &view);
    return code;
}

/* Input "process": its answers to many invocations at once. */
PRAAS_FUNCTION(batch, 0)
{
    static const char *const words[] = {"one", "two", "three"};
    praas_bytes inputs[3];
    praas_batch_outcome outcomes[3];
    char text[256] = "";
    size_t at;
    CHECK(PRAAS_HOST_HAS(host, invoke_batch));
    for (at = 0; at < 3; at++) {
        inputs[at] = praas_text(words[at]);
    }
    TRY(host->invoke_batch(call, input, praas_text("fails"), inputs, 3, -1, outcomes));
    for (at = 0; at < 3; at++) {
        size_t end = strlen(text);
        snprintf(text + end, sizeof text - end, "%.*s %" PRId32 "\n",
                 (int)outcomes[at].view.bytes.len, (const char *)outcomes[at].view.bytes.ptr,
                 outcomes[at].code);
        praas_view_end(host, &outcomes[at].view);
    }
    return text_out(call, host, text);
}

/* Input "process function input": begins it, and does not wait for it. */
PRAAS_FUNCTION(one_way, 0)
{
    line in = line_of(input);
    char process[256], function[256];
    int end = 0;
    CHECK(PRAAS_HOST_HAS(host, invoke_one_way));
    CHECK(sscanf(in.text, "%255s %255s %n", process, function, &end) == 2);
    TRY(host->invoke_one_way(call, praas_text(process), praas_text(function),
                             praas_text(in.text + end), -1));
    return PRAAS_OK;
}

/* The outcomes of a broadcast, one a line: a name and a code. */
static int32_t outcomes_out(praas_call_handle *call, const praas_host_table *host,
                            const praas_raw_view *view)
{
    char text[4096] = "";
    praas_bytes rest;
    praas_outcome outcome;
    CHECK(praas_outcomes_begin(view->bytes, &rest));
    while (praas_outcome_next(&rest, &outcome)) {
        size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "%.*s %" PRId32 "\n", (int)outcome.process.len,
                 (const char *)outcome.process.ptr, outcome.code);
    }
    return text_out(call, host, text);
}

/* Tells the processes that the input names, one after the other: news of 100,000 bytes. */
PRAAS_FUNCTION(tell, 0)
{
    line in = line_of(input);
    praas_bytes names[64];
    size_t count = 0;
    praas_raw_view view = praas_view_none();
    char *name, *news = (char *)malloc(100000);
    int32_t code;
    CHECK(PRAAS_HOST_HAS(host, message_broadcast) && news != NULL);
    memset(news, 'n', 100000);
    for (name = strtok(in.text, " "); name != NULL && count < 64; name = strtok(NULL, " ")) {
        names[count++] = praas_text(name);
    }
    code = host->message_broadcast(call, names, count, praas_text("news"),
                                   praas_bytes_of(news, 100000), 10000000, &view);
    free(news);
    if (view.handle == NULL) {
        return praas_error_pass(call, host, code);
    }
    code = outcomes_out(call, host, &view);
    praas_view_end(host, &view);
    return code;
}

/* Tells all other members what the input is. */
PRAAS_FUNCTION(tell_all, 0)
{
    praas_raw_view view = praas_view_none();
    int32_t code = host->message_broadcast(call, NULL, 0, praas_text("news"), input, -1, &view);
    if (view.handle == NULL) {
        return praas_error_pass(call, host, code);
    }
    code = outcomes_out(call, host, &view);
    praas_view_end(host, &view);
    return code;
}

static int32_t world_out(praas_call_handle *call, const praas_host_table *host,
                         praas_raw_view *view)
{
    static const char *const states[] = {"starting", "ready", "swapped", "gone"};
    char text[4096];
    uint64_t generation = 0;
    praas_bytes rest;
    praas_member member;
    int32_t code;
    CHECK(praas_world_begin(view->bytes, &generation, &rest));
    snprintf(text, sizeof text, "%" PRIu64, generation);
    while (praas_world_next(&rest, &member)) {
        size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, " %.*s/%" PRIu64 ":%s", (int)member.name.len,
                 (const char *)member.name.ptr, member.incarnation, states[member.state & 3]);
    }
    code = text_out(call, host, text);
    praas_view_end(host, view);
    return code;
}

/* The world as it is: its generation, and members with incarnation and state. */
PRAAS_FUNCTION(world, 0)
{
    praas_raw_view view = praas_view_none();
    TRY(host->world(call, PRAAS_WORLD_NOW, 0, &view));
    return world_out(call, host, &view);
}

/* Input "after timeout_us": the world, once it has changed. */
PRAAS_FUNCTION(world_wait, 0)
{
    line in = line_of(input);
    praas_raw_view view = praas_view_none();
    uint64_t after = 0;
    int64_t timeout_us = 0;
    CHECK(sscanf(in.text, "%" SCNu64 " %" SCNd64, &after, &timeout_us) == 2);
    TRY(host->state_put(call, praas_text("waiting"), praas_none(), NULL));
    TRY(host->world(call, after, timeout_us, &view));
    return world_out(call, host, &view);
}

/* Runs until it is to end. */
PRAAS_FUNCTION(spins, PRAAS_FLAG_LONG)
{
    TRY(host->state_put(call, praas_text("spinning"), praas_none(), NULL));
    while (!host->cancelled(call)) {
    }
    return PRAAS_STATUS_CANCELLED;
}

PRAAS_FUNCTION(fails, 0)
{
    return praas_error(call, host, line_of(input).text);
}

PRAAS_FUNCTION_NAMED(large, "large.output", PRAAS_FLAG_IDEMPOTENT)
{
    uint8_t *out = NULL;
    TRY(host->output_alloc(call, 1 << 20, &out));
    memset(out, 'x', 1 << 20);
    return PRAAS_OK;
}

PRAAS_MODULE("calls", PRAAS_USE(who), PRAAS_USE(id), PRAAS_USE(keeps), PRAAS_USE(state), PRAAS_USE(mail), PRAAS_USE(take),
             PRAAS_USE(take_again), PRAAS_USE(hurried), PRAAS_USE(limited), PRAAS_USE(too_much),
             PRAAS_USE(put), PRAAS_USE(ask), PRAAS_USE(peer), PRAAS_USE(batch), PRAAS_USE(one_way), PRAAS_USE(tell), PRAAS_USE(tell_all),
             PRAAS_USE(world), PRAAS_USE(world_wait), PRAAS_USE(spins), PRAAS_USE(fails),
             PRAAS_USE(large));
