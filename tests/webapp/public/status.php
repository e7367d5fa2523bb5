<?php
// The status strip as JSON.
declare(strict_types=1);

require (getenv('HA_APP_LIB') ?: '/usr/local/share/ha-app') . '/app.php';

run(function () {
    require_method('GET');
    send_json(200, cluster_status());
});
