/* libcurl: an HTTP exchange with a server in another process. */

#include "hooks.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <sys/prctl.h>

#include "zmalloc_hooks.h"

#define UPLOAD (100 * KIB)
#define DOWNLOAD (300 * KIB)

/* -------------------------------------------------------------- the server */

static pid_t server;
static char url[64];

static void serve(struct evhttp_request *request, void *ctx)
{
    (void)ctx;
    struct evbuffer *body = evbuffer_new();
    if (body == NULL || evbuffer_get_length(evhttp_request_get_input_buffer(request)) != UPLOAD ||
        evbuffer_add(body, text(DOWNLOAD + 1), DOWNLOAD) != 0)
        evhttp_send_error(request, HTTP_BADREQUEST, NULL);
    else
        evhttp_send_reply(request, HTTP_OK, NULL, body);
    evbuffer_free(body);
}

static void run_server(int port_pipe)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct event_base *base = event_base_new();
    struct evhttp *http = evhttp_new(base);
    evhttp_set_gencb(http, serve, NULL);
    struct evhttp_bound_socket *bound = evhttp_bind_socket_with_handle(http, "127.0.0.1", 0);
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&address, &length);
    if (write(port_pipe, &address.sin_port, sizeof address.sin_port) == (ssize_t)sizeof address.sin_port)
        event_base_dispatch(base);
    _exit(1);
}

static int start_server(void **state)
{
    int ends[2];
    in_port_t port;
    (void)state;
    if (pipe(ends) != 0 || (server = fork()) < 0)
        return -1;
    if (server == 0)
        run_server(ends[1]);
    close(ends[1]);
    ssize_t n = read(ends[0], &port, sizeof port);
    close(ends[0]);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/upload", ntohs(port));
    return n == (ssize_t)sizeof port ? 0 : -1;
}

static int stop_server(void **state)
{
    (void)state;
    kill(server, SIGKILL);
    return waitpid(server, NULL, 0) == server ? 0 : -1;
}

/* -------------------------------------------------------------- the client */

static size_t count_received(char *bytes, size_t size, size_t n, void *ctx)
{
    size_t *received = ctx;
    expect(memchr(bytes, 0, size * n) == NULL);
    *received += size * n;
    return size * n;
}

static int exchange_by_http(void)
{
    int error = zmalloc_hook_libcurl(CURL_GLOBAL_ALL);
    expect(error == 0 || error == ENOMEM || error == EINVAL);
    if (error != 0)
        return -1;
    size_t received = 0;
    CURLcode code = CURLE_OUT_OF_MEMORY;
    CURL *client = curl_easy_init();
    struct curl_slist *fields = curl_slist_append(NULL, "Expect:");
    if (client != NULL && fields != NULL) {
        curl_easy_setopt(client, CURLOPT_WRITEFUNCTION, count_received);
        curl_easy_setopt(client, CURLOPT_WRITEDATA, &received);
        curl_easy_setopt(client, CURLOPT_HTTPHEADER, fields);
        curl_easy_setopt(client, CURLOPT_POSTFIELDSIZE, (long)UPLOAD);
        curl_easy_setopt(client, CURLOPT_FAILONERROR, 1L);
        curl_easy_setopt(client, CURLOPT_NOSIGNAL, 1L);
        if ((code = curl_easy_setopt(client, CURLOPT_NOPROXY, "*")) == CURLE_OK &&
            (code = curl_easy_setopt(client, CURLOPT_URL, url)) == CURLE_OK &&
            (code = curl_easy_setopt(client, CURLOPT_COPYPOSTFIELDS, text(UPLOAD + 1))) == CURLE_OK)
            code = curl_easy_perform(client);
    }
    expect(code != CURLE_OK || received == DOWNLOAD);
    curl_slist_free_all(fields);
    curl_easy_cleanup(client);
    curl_global_cleanup();
    return code == CURLE_OK ? 0 : -1;
}

static int hook_too_late_and_then_in_time(void *ctx)
{
    (void)ctx;
    expect(curl_global_init(CURL_GLOBAL_ALL) == CURLE_OK);
    expect(zmalloc_hook_libcurl(CURL_GLOBAL_ALL) == EBUSY);
    expect(zmalloc_used_memory() == 0);
    curl_global_cleanup();
    expect(zmalloc_hook_libcurl(CURL_GLOBAL_ALL) == 0);
    expect(zmalloc_hook_libcurl(CURL_GLOBAL_ALL) == 0);
    curl_global_cleanup();
    curl_global_cleanup();
    expect(zmalloc_used_memory() == 0);
    return 0;
}

static void it_is_refused_when_curl_is_initialised_already(void **state)
{
    (void)state;
    struct child_end end = run_in_child(hook_too_late_and_then_in_time, NULL);
    if (exited_with(&end) != 0)
        fail_msg("%s", end.text);
}

int main(void)
{
    static struct hooked_library libcurl = {.work = exchange_by_http};
    char name[64];
    snprintf(name, sizeof name, "libcurl %s", curl_version_info(CURLVERSION_NOW)->version);
    libcurl.name = name;
    const struct CMUnitTest tests[] = {
        library_tests(&libcurl),
        cmocka_unit_test(it_is_refused_when_curl_is_initialised_already),
    };
    return cmocka_run_group_tests_name(name, tests, start_server, stop_server);
}
