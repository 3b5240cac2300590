// This script is in its own file, because the Content-Security-Policy allows no inline scripts.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
