/* A program of the prototype's kind, with long names: it receives by a thread as its elder brothers do, and ends right after its last word. */
#include "am5728.h"
#include "sock.h"

static void *receive(void *arg)
{
    int sock = client_socket();
    PACKET p;
    memset(&p, 0, sizeof p);
    strcpy(p.head, "head");
    strcpy(p.source_name, "a-name-of-more-than-ten-bytes");
    if (sock < 0 || write(sock, &p, MSG_LEGHTN) != (ssize_t)MSG_LEGHTN) return NULL;
    while (recv(sock, &p, MSG_LEGHTN, 0) == (ssize_t)MSG_LEGHTN) {
        printf("%s: %s\n", p.source_name, p.msg);
        fflush(stdout);
        if (strcmp(p.msg, "hold") == 0) getchar();
        if (strcmp(p.msg, "end") == 0) break;
    }
    close(sock);
    return arg;
}

int main(void)
{
    char big[600];
    pthread_t thread;
    int sock;
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = 0;
    pthread_create(&thread, NULL, receive, NULL);
    sock = client_socket();
    if (sock < 0 || register_wdt(sock, "a-name-of-more-than-ten-bytes") != 1) return 1;
    if (transfer_msg(sock, "other", "a-name-of-more-than-ten-bytes", big) != -1 || transfer_msg(sock, big, "other", "") != -1) return 2;
    transfer_msg(sock, "another-long-name", "a-name-of-more-than-ten-bytes", "first");
    pthread_join(thread, NULL);
    if (get_other_process_pid("zhx_server") != getppid() || get_other_process_pid("no such process") != 0) return 3;
    if (get_other_process_pid("c_sock") != getpid()) return 4;
    send_wdt(sock, "a-name-of-more-than-ten-bytes");
    transfer_msg(sock, "another-long-name", "a-name-of-more-than-ten-bytes", "last");
    return 0;
}
