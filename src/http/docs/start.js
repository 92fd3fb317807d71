// After a login the page authorises itself, so that every other route can be tried at once. The token stays in this
// page's memory, and is lost with it.
const hint = document.getElementById("hint");
const loggedOut = hint.innerHTML;

// Logging out, in the "Authorize" dialog or below, removes the token, and with this what the hint says about it.
const forget = () => ({
  statePlugins: {
    auth: {
      wrapActions: {
        logout: (original) => (names) => {
          hint.innerHTML = loggedOut;
          return original(names);
        },
      },
    },
  },
});

const ui = SwaggerUIBundle({
  // Beside this page, wherever a proxy mounts it.
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  plugins: [forget],
  tryItOutEnabled: true,
  validatorUrl: null,
  responseInterceptor: (response) => {
    const body = response.body;
    // A header field with commas is an array here.
    const isRefused = String(response.headers["www-authenticate"]).includes('error="invalid_token"');
    if (isRefused || (response.ok && new URL(response.url).pathname.endsWith("users/logout"))) {
      ui.authActions.logout(["bearer"]);
    }
    if (response.ok && body && body.access_token && body.token_type === "Bearer") {
      ui.preauthorizeApiKey("bearer", body.access_token);
      const end = new Date(body.access_token_expires_at).toLocaleTimeString();
      const who = body.user ? " as " + body.user.username : "";
      hint.textContent =
        "Logged in" + who + ": this page sends the access token with every request. The token expires at " + end + ".";
    }
    return response;
  },
});
