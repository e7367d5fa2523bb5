<?php
// Logging in and out.
declare(strict_types=1);

require (getenv('HA_APP_LIB') ?: '/usr/local/share/ha-app') . '/app.php';

// Where a login may lead to; any other word leads to the users.
function next_page(mixed $word): string
{
    return in_array($word, ['users', 'files'], true) ? $word : 'users';
}

function log_in_from_form(): never
{
    require_may_write();
    require_whole_body();
    require_form_token();
    $name = posted('name') ?? '';
    $next = next_page(posted('next'));
    try {
        $account = log_in($name, posted('password') ?? '');
    } catch (Refusal $refusal) {
        // A person gets the form again with what went wrong, and may try once more.
        if (wants_json() || !in_array($refusal->status, [401, 429], true)) {
            throw $refusal;
        }
        if ($refusal->retry_after !== null) {
            header('Retry-After: ' . $refusal->retry_after);
        }
        show_login($refusal->status, $refusal->getMessage(), $name, $next);
    }
    answer_done($account, "$next.php?done=logged-in");
}

function log_out_from_form(): never
{
    require_may_write();
    require_form_token();
    log_out();
    answer_done([], 'login.php?done=logged-out');
}

run(function () {
    require_method('GET', 'POST');
    if (!logins_are_on()) {
        wants_json() ? throw new Refusal(404, 'logins-off', 'Logins are off; everybody may change things.') : redirect('users.php');
    }
    if (request_method() === 'POST') {
        match (posted('action')) {
            'login' => log_in_from_form(),
            'logout' => log_out_from_form(),
            default => throw new Refusal(422, 'fields', 'The form is not one of this page.'),
        };
    }
    $account = current_account();
    if (wants_json()) {
        send_json(200, ['ok' => true, 'csrf' => form_token(), 'account' => $account === null ? null : ['name' => $account['name'], 'role' => $account['role']]]);
    }
    if ($account !== null) {
        redirect('users.php');
    }
    show_login(200, null, '', next_page($_GET['next'] ?? null));
});
