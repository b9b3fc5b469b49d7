/*
 * Every call of a client, in C, against a cluster: client TICKET_FILE RUN_DIR TRANSPORTS. Processes
 * p and q of the ticket's application have the functions of calls.c. Says what is not so, and ends
 * with 1.
 */
#include "praas_client.h"

#include <inttypes.h>
#include <stdio.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: not so: %s (%s)\n", __LINE__, #condition,                    \
                    praas_client_error(client));                                                   \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

#define SECOND INT64_C(1000000)
#define SOON (60 * SECOND)

static int buffer_is(const praas_buffer *buffer, const char *text)
{
    return praas_text_is(praas_bytes_of(buffer->data, buffer->len), text);
}

static int refusals(const char *ticket, const char *run_dir)
{
    praas_client *client = NULL;
    praas_client_options options = PRAAS_CLIENT_OPTIONS;
    CHECK(praas_client_open(NULL, &client) == PRAAS_BAD_ARGUMENT && client == NULL);
    CHECK(praas_client_open(&options, &client) == PRAAS_BAD_ARGUMENT && client == NULL);
    CHECK(strstr(praas_client_error(NULL), "ticket") != NULL);
    options.ticket_path = "/no/such/ticket";
    options.run_dir = run_dir;
    CHECK(praas_client_open(&options, &client) == PRAAS_NOT_FOUND);
    CHECK(strstr(praas_client_error(NULL), "/no/such/ticket") != NULL);
    options.ticket = "{\"credential\": 7}";
    CHECK(praas_client_open(&options, &client) == PRAAS_BAD_ARGUMENT);
    options.ticket = NULL;
    options.ticket_path = ticket;
    options.transports = "pigeon";
    CHECK(praas_client_open(&options, &client) == PRAAS_BAD_ARGUMENT);
    CHECK(strstr(praas_client_error(NULL), "pigeon") != NULL);
    options.transports = NULL;
    options.wait = 9;
    CHECK(praas_client_open(&options, &client) == PRAAS_BAD_ARGUMENT);
    options.wait = 0;
    options.size = 8;
    CHECK(praas_client_open(&options, &client) == PRAAS_BAD_ARGUMENT);
    /* Nothing is nothing. */
    CHECK(praas_client_invoke(NULL, "p", "who", NULL, 0, SOON, NULL) == PRAAS_BAD_ARGUMENT);
    praas_client_close(NULL);
    praas_buffer_free(NULL);
    return 0;
}

static int invocations(praas_client *client)
{
    praas_buffer output = PRAAS_BUFFER;
    uint64_t calls[3], ended = 0;
    int32_t code;
    int number;
    CHECK(praas_client_invoke(client, "p", "who", NULL, 0, SOON, &output) == PRAAS_OK);
    CHECK(output.len > 4 && memcmp(output.data, "a p ", 4) == 0);
    praas_buffer_free(&output);
    praas_buffer_free(&output);
    CHECK(praas_client_invoke(client, "p", "fails", "in C", 4, SOON, NULL) ==
          PRAAS_STATUS_FUNCTION_ERROR);
    CHECK(strstr(praas_client_error(client), "in C") != NULL);
    CHECK(praas_client_invoke(client, "p", "none", NULL, 0, SOON, NULL) ==
          PRAAS_STATUS_UNKNOWN_FUNCTION);
    CHECK(praas_client_invoke(client, "p", NULL, NULL, 0, SOON, NULL) == PRAAS_BAD_ARGUMENT);
    CHECK(praas_client_invoke(client, "p", "who", NULL, 5, SOON, NULL) == PRAAS_BAD_ARGUMENT);
    CHECK(praas_client_invoke(client, "p", "\xff", NULL, 0, SOON, NULL) == PRAAS_BAD_ARGUMENT);
    CHECK(praas_client_invoke(client, "nobody", "who", NULL, 0, SOON, NULL) == PRAAS_UNAVAILABLE);
    CHECK(praas_client_invoke(client, "p", "take", "never", 5, 1000, NULL) ==
          PRAAS_STATUS_DEADLINE_EXCEEDED);
    CHECK(praas_client_invoke(client, "q", "large.output", NULL, 0, SOON, &output) == PRAAS_OK);
    CHECK(output.len == 1 << 20 && output.data[0] == 'x' && output.data[output.len - 1] == 'x');
    praas_buffer_free(&output);
    /* Many at once; results in any order. */
    for (number = 0; number < 3; number++) {
        CHECK(praas_client_submit(client, number == 1 ? "q" : "p", "who", NULL, 0, SOON,
                                  &calls[number]) == PRAAS_OK);
    }
    CHECK(praas_client_wait(client, calls[1], &output) == PRAAS_OK);
    CHECK(memcmp(output.data, "a q ", 4) == 0);
    praas_buffer_free(&output);
    for (number = 0; number < 2; number++) {
        CHECK(praas_client_wait_any(client, SOON, &ended, &output) == PRAAS_OK);
        CHECK(ended == calls[0] || ended == calls[2]);
        praas_buffer_free(&output);
    }
    CHECK(praas_client_wait_any(client, SOON, &ended, &output) == PRAAS_NOT_FOUND);
    CHECK(praas_client_wait(client, calls[0], NULL) == PRAAS_STATUS_RESULT_EXPIRED);
    /* One that never ends, unless it is told to. */
    CHECK(praas_client_submit(client, "p", "spins", NULL, 0, -1, &calls[0]) == PRAAS_OK);
    do {
        code = praas_client_state_get(client, "p", "spinning", SOON, NULL);
    } while (code == PRAAS_NOT_FOUND);
    CHECK(code == PRAAS_OK);
    CHECK(praas_client_wait_any(client, 1000, &ended, &output) == PRAAS_NOT_FOUND);
    CHECK(praas_client_cancel(client, calls[0]) == PRAAS_OK);
    CHECK(praas_client_wait(client, calls[0], NULL) == PRAAS_STATUS_CANCELLED);
    return 0;
}

static int one_ways(praas_client *client)
{
    uint64_t pending = 9, failed = 9;
    praas_buffer body = PRAAS_BUFFER;
    CHECK(praas_client_one_way(client, "q", "put", "p one-way hello", 15, SOON) == PRAAS_OK);
    CHECK(praas_client_one_way_wait(client, SOON, &pending, &failed) == PRAAS_OK);
    CHECK(pending == 0 && failed == 0);
    CHECK(praas_client_get(client, "p", "q", "one-way", SOON, NULL, &body) == PRAAS_OK);
    CHECK(buffer_is(&body, "hello"));
    praas_buffer_free(&body);
    CHECK(praas_client_one_way(client, "nobody", "put", NULL, 0, SOON) == PRAAS_OK);
    CHECK(praas_client_one_way_wait(client, SOON, &pending, &failed) == PRAAS_OK);
    CHECK(pending == 0 && failed == 1);
    return 0;
}

static int messages(praas_client *client)
{
    static const char *const both[] = {"p", "nobody", "q"};
    praas_buffer from = PRAAS_BUFFER, body = PRAAS_BUFFER;
    int32_t codes[3];
    CHECK(praas_client_put(client, "p", "k", "one", 3, SOON) == PRAAS_OK);
    CHECK(praas_client_put(client, "p", "k", "two", 3, SOON) == PRAAS_OK);
    CHECK(praas_client_put(client, "nobody", "k", "two", 3, SOON) == PRAAS_UNAVAILABLE);
    CHECK(praas_client_get(client, "p", "somebody", "k", 0, NULL, &body) == PRAAS_NOT_FOUND);
    CHECK(praas_client_get(client, "p", NULL, "k", 0, &from, &body) == PRAAS_OK);
    CHECK(buffer_is(&body, "one") && from.len > 7 && memcmp(from.data, "client:", 7) == 0);
    praas_buffer_free(&from);
    praas_buffer_free(&body);
    CHECK(praas_client_get(client, "p", NULL, "k", SOON, NULL, &body) == PRAAS_OK);
    CHECK(buffer_is(&body, "two"));
    praas_buffer_free(&body);
    CHECK(praas_client_get(client, "p", NULL, "k", 2000, NULL, NULL) == PRAAS_NOT_FOUND);
    /* A function takes what a client puts, and the other way round. */
    CHECK(praas_client_put(client, "q", "k", "three", 5, SOON) == PRAAS_OK);
    CHECK(praas_client_invoke(client, "q", "take", "k", 1, SOON, &body) == PRAAS_OK);
    CHECK(body.len > 5 && memcmp(body.data + body.len - 5, "three", 5) == 0);
    praas_buffer_free(&body);
    CHECK(praas_client_invoke(client, "q", "put", "p k four", 8, SOON, NULL) == PRAAS_OK);
    CHECK(praas_client_get(client, "p", "q", "k", SOON, &from, &body) == PRAAS_OK);
    CHECK(buffer_is(&from, "q") && buffer_is(&body, "four"));
    praas_buffer_free(&from);
    praas_buffer_free(&body);
    CHECK(praas_client_broadcast(client, both, 3, "news", "now", 3, SOON, codes) ==
          PRAAS_UNAVAILABLE);
    CHECK(codes[0] == PRAAS_OK && codes[1] == PRAAS_UNAVAILABLE && codes[2] == PRAAS_OK);
    CHECK(strstr(praas_client_error(client), "nobody") != NULL);
    CHECK(praas_client_get(client, "q", NULL, "news", SOON, NULL, &body) == PRAAS_OK);
    CHECK(buffer_is(&body, "now"));
    praas_buffer_free(&body);
    CHECK(praas_client_get(client, "p", NULL, "news", SOON, NULL, NULL) == PRAAS_OK);
    CHECK(praas_client_broadcast(client, both, 1, "news", NULL, 0, SOON, NULL) == PRAAS_OK);
    return 0;
}

static int states(praas_client *client)
{
    praas_buffer object = PRAAS_BUFFER;
    praas_state_entry entry;
    praas_bytes rest;
    uint64_t first = 0, second = 0;
    CHECK(praas_client_state_get(client, "p", "c/1", SOON, &object) == PRAAS_NOT_FOUND);
    CHECK(object.handle == NULL);
    CHECK(praas_client_state_put(client, "p", "c/1", "one", 3, SOON, &first) == PRAAS_OK);
    CHECK(praas_client_state_put(client, "p", "c/2", NULL, 0, SOON, &second) == PRAAS_OK);
    CHECK(second > first && first > 0);
    CHECK(praas_client_state_put(client, "p", "", "x", 1, SOON, NULL) != PRAAS_OK);
    CHECK(praas_client_state_get(client, "p", "c/1", SOON, &object) == PRAAS_OK);
    CHECK(buffer_is(&object, "one"));
    praas_buffer_free(&object);
    CHECK(praas_client_state_list(client, "p", "c/", NULL, 10, SOON, &object) == PRAAS_OK);
    rest = praas_bytes_of(object.data, object.len);
    CHECK(praas_state_next(&rest, &entry) && praas_text_is(entry.key, "c/1"));
    CHECK(entry.bytes == 3 && entry.version == first && entry.written_unix_ms > 0);
    CHECK(praas_state_next(&rest, &entry) && praas_text_is(entry.key, "c/2"));
    CHECK(!praas_state_next(&rest, &entry));
    praas_buffer_free(&object);
    CHECK(praas_client_state_list(client, "p", "c/", "c/1", 10, SOON, &object) == PRAAS_OK);
    rest = praas_bytes_of(object.data, object.len);
    CHECK(praas_state_next(&rest, &entry) && !praas_state_next(&rest, &entry));
    praas_buffer_free(&object);
    CHECK(praas_client_state_delete(client, "p", "c/1", SOON) == PRAAS_OK);
    CHECK(praas_client_state_delete(client, "p", "c/1", SOON) == PRAAS_NOT_FOUND);
    return 0;
}

int main(int argc, char **argv)
{
    praas_client_options options = PRAAS_CLIENT_OPTIONS;
    praas_client *client = NULL;
    praas_buffer kept = PRAAS_BUFFER;
    int failed;
    CHECK(argc == 4);
    options.ticket_path = argv[1];
    options.run_dir = argv[2];
    options.transports = argv[3];
    options.wait = PRAAS_WAIT_WARM;
    if (refusals(argv[1], argv[2]) != 0) {
        return 1;
    }
    CHECK(praas_client_open(&options, &client) == PRAAS_OK && client != NULL);
    failed = invocations(client) || one_ways(client) || messages(client) || states(client);
    CHECK(praas_client_invoke(client, "p", "who", NULL, 0, SOON, &kept) == PRAAS_OK);
    praas_client_close(client);
    client = NULL;
    /* What was given out outlives the client. */
    CHECK(kept.len > 4 && memcmp(kept.data, "a p ", 4) == 0);
    praas_buffer_free(&kept);
    printf("%s\n", failed ? "failed" : "all is so");
    return failed;
}
